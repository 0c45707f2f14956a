#!/usr/bin/env bash
# The default experiment as one does it without slackmerge: a Trainer script, mergekit-yaml, the lm_eval command line.
#   run.sh DATA OUT "BUDGETS" SFT_TOKENS      with PYTHON, MERGEKIT and LM_EVAL set to the three programs
# DATA has base/ (a model), nya.jsonl and en.jsonl (text), sft.jsonl (instructions) and tasks/ (lm_eval's YAMLs).
# Two budgets, three methods with stated settings, a seed. Restart it after a crash and it begins again.
set -euo pipefail
data=$1 out=$2 budgets=$3 sft_tokens=$4
here=$(dirname "$0")
mkdir -p "$out"

"$PYTHON" "$here/train.py" sft "$data/base" "$data/sft.jsonl" "$out/sft" "$sft_tokens" "$data/en.jsonl"
for budget in $budgets; do
  "$PYTHON" "$here/train.py" ct "$data/base" "$data/nya.jsonl" "$out/ct-$budget" "$budget" "$data/en.jsonl"
  "$PYTHON" "$here/train.py" sft "$out/ct-$budget" "$data/sft.jsonl" "$out/ct_then_sft-$budget" "$sft_tokens" "$data/en.jsonl"

  cat > "$out/linear-$budget.yml" <<YAML
merge_method: linear
dtype: float32
models:
  - {model: $out/ct-$budget, parameters: {weight: 1.0}}
  - {model: $out/sft, parameters: {weight: 1.0}}
YAML
  for method in task_arithmetic ties; do
    lambda=$([ "$method" = ties ] && echo 1.5 || echo 1.0)
    cat > "$out/$method-$budget.yml" <<YAML
merge_method: $method
base_model: $data/base
dtype: float32
parameters: {lambda: $lambda, normalize: $([ "$method" = ties ] && echo true || echo false)}
models:
  - {model: $out/ct-$budget, parameters: {weight: 1.0, density: 1.0}}
  - {model: $out/sft, parameters: {weight: 1.0, density: 1.0}}
YAML
  done
  for method in linear task_arithmetic ties; do
    "$MERGEKIT" "$out/$method-$budget.yml" "$out/$method-$budget" --copy-tokenizer
  done
done

tasks=$(cd "$data/tasks" && ls ./*.yaml | sed 's|\./||; s|\.yaml||' | paste -sd,)
for model in "$data/base" "$out/sft" "$out"/ct-* "$out"/ct_then_sft-* "$out"/{linear,task_arithmetic,ties}-*; do
  [ -f "$model/config.json" ] || continue
  "$LM_EVAL" run --model hf --model_args "pretrained=$model,dtype=float32,max_length=249" --device cpu --batch_size 16 \
    --include_path "$data/tasks" --tasks "$tasks" --output_path "$out/scores/$(basename "$model")" --log_samples
done
