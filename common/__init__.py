"""What every package uses: errors as one line, atomic files, units, and models and data of the Hub.

It imports no other package of slackmerge.
"""
