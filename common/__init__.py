"""What every package uses: errors as one line, atomic files, validated JSON and YAML, units, and the Hugging Face Hub.

It imports no other package of slackmerge.
"""
