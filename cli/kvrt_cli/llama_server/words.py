"""Words of llama-server's command line that kvrt has nothing for: some change nothing of what is
said and are passed over, which is told; of others, an answer would be without what they ask for,
and they are refused by name.

As of llama.cpp as llama-cpp-python 0.3.36 has it.
"""

from collections.abc import Callable
from typing import Any

import click

from kvrt_cli.options import Decorator, apply

PASSED = """
-tb --threads-batch N
-C --cpu-mask M
-Cr --cpu-range LO-HI
--cpu-strict N
--prio N
--poll N
-Cb --cpu-mask-batch M
-Crb --cpu-range-batch LO-HI
--cpu-strict-batch N
--prio-batch N
--poll-batch N
-b --batch-size N
--keep N
--swa-full
-fa --flash-attn [on|off|auto]
--perf --no-perf
-e --escape --no-escape
-kvo --kv-offload -nkvo --no-kv-offload
--repack -nr --no-repack
--no-host
-dt --defrag-thold N
-lm --load-mode MODE
-lzm --lazy-mode MODE
--mlock
--mmap --no-mmap
-dio --direct-io -ndio --no-direct-io
--numa TYPE
-ot --override-tensor PATTERNS
-cmoe --cpu-moe
-ncmoe --n-cpu-moe N
-ncffn --n-cpu-ffn N
-sm --split-mode MODE
-ts --tensor-split SHARES
-mg --main-gpu N
-fit --fit on|off
-fitt --fit-target SIZES
-fitc --fit-ctx N
--check-tensors
--op-offload --no-op-offload
--log-disable
--log-file FILE
--log-jsonl --no-log-jsonl
--log-colors MODE
-v --verbose --log-verbose
-lv --verbosity --log-verbosity N
--log-prefix --no-log-prefix
--log-timestamps --no-log-timestamps
-ctkd --spec-draft-type-k --cache-type-k-draft TYPE
-ctvd --spec-draft-type-v --cache-type-v-draft TYPE
--repeat-last-n N
--samplers NAMES
--sampler-seq --sampling-seq LETTERS
--xtc-threshold X
--dry-base X
--dry-allowed-length N
--dry-penalty-last-n N
--dry-sequence-breaker TEXT
--adaptive-decay X
--dynatemp-exp X
--mirostat-lr X
--mirostat-ent X
-bs --backend-sampling
-lcs --lookup-cache-static FILE
-lcd --lookup-cache-dynamic FILE
-ctxcp --ctx-checkpoints --swa-checkpoints N
-cms --checkpoint-min-step N
-cram --cache-ram N
--cache-idle-slots --no-cache-idle-slots
--no-context-shift
--warmup --no-warmup
-cb --cont-batching -nocb --no-cont-batching
--mmproj-auto --no-mmproj --no-mmproj-auto
--mmproj-offload --no-mmproj-offload
-mmdev --mmproj-device DEVICE
--tags TEXT
--reuse-port
--ui-config --webui-config JSON
--ui-config-file --webui-config-file FILE
--no-ui-mcp-proxy --no-webui-mcp-proxy
-no-ag --no-agent
-to --timeout N
--sse-ping-interval N
--threads-http N
--cache-reuse N
--models-max N
--models-autoload --no-models-autoload
--jinja
--reasoning-format FORMAT
--reasoning-preserve --no-reasoning-preserve
--prefill-assistant
-sps --slot-prompt-similarity X
-hft --hf-token TOKEN
-td --spec-draft-threads --threads-draft N
-tbd --spec-draft-threads-batch --threads-batch-draft N
-Cd --spec-draft-cpu-mask --cpu-mask-draft M
-Crd --spec-draft-cpu-range --cpu-range-draft LO-HI
--spec-draft-cpu-strict --cpu-strict-draft N
--spec-draft-prio --prio-draft N
--spec-draft-poll --poll-draft N
-Cbd --spec-draft-cpu-mask-batch --cpu-mask-batch-draft M
--spec-draft-cpu-strict-batch --cpu-strict-batch-draft N
--spec-draft-prio-batch --prio-batch-draft N
--spec-draft-poll-batch --poll-batch-draft N
-otd --spec-draft-override-tensor --override-tensor-draft PATTERNS
-cmoed --spec-draft-cpu-moe --cpu-moe-draft
-ncmoed --spec-draft-n-cpu-moe --spec-draft-ncmoe --n-cpu-moe-draft N
--spec-draft-n-min --draft-min --draft-n-min N
--spec-draft-p-split --draft-p-split X
--spec-draft-p-min --draft-p-min X
--spec-draft-backend-sampling --no-spec-draft-backend-sampling
-devd --spec-draft-device --device-draft DEVICES
-ngld --spec-draft-ngl --gpu-layers-draft --n-gpu-layers-draft N
--spec-ngram-mod-n-min N
--spec-ngram-mod-n-max N
--spec-ngram-mod-n-match --spec-ngram-size-n N
--spec-ngram-simple-size-n N
--spec-ngram-simple-size-m --spec-ngram-size-m N
--spec-ngram-simple-min-hits --spec-ngram-min-hits N
--spec-ngram-map-k-size-n N
--spec-ngram-map-k-size-m N
--spec-ngram-map-k-min-hits N
--spec-ngram-map-k4v-size-n N
--spec-ngram-map-k4v-size-m N
--spec-ngram-map-k4v-min-hits N
"""
"""A line is the names of an option, and a word for its value, if it takes one."""

REFUSED = """
--rope-scaling TYPE none | contexts are stretched as the model's file says
--rope-scale N 1 | contexts are stretched as the model's file says
--rope-freq-base N 0 | the base is that of the model's file
--rope-freq-scale N 1 | contexts are stretched as the model's file says
--yarn-orig-ctx N 0 | contexts are stretched as the model's file says
--yarn-ext-factor N -1 | contexts are stretched as the model's file says
--yarn-attn-factor N -1 | contexts are stretched as the model's file says
--yarn-beta-slow N -1 | contexts are stretched as the model's file says
--yarn-beta-fast N -1 | contexts are stretched as the model's file says
--rpc SERVERS | several machines compute one model with kvrt serve --tensor-parallel
-dev --device DEVICES | kvrt takes the first device that works; -ngl 0 means the CPU
--override-kv KEY=TYPE:VALUE | a model's file is read as it is
--control-vector FILE | there are no control vectors
--control-vector-scaled FILE:SCALE | there are no control vectors
-mu --model-url URL | download the file, and name it with -m
-dr --docker-repo NAME | download the file, and name it with -m
-hff --hf-file FILE | say which one with -hf OWNER/NAME:QUANTISATION
-hfd -hfrd --spec-draft-hf --hf-repo-draft NAME | name it with -md
--top-nsigma --top-n-sigma N -1 | tokens are not sampled so
--xtc-probability N 0 | tokens are not sampled so
--typical --typical-p N 1 | tokens are not sampled so
--dry-multiplier N 0 | tokens are not sampled so
--adaptive-target N -1 | tokens are not sampled so
--dynatemp-range N 0 | tokens are not sampled so
--mirostat N 0 | tokens are not sampled so
-l --logit-bias BIAS | requests have logit_bias
--kv-unified-per-slot N 0 | say with -c how long a context may be
--context-shift | a context that is full ends the answer
-sp --special | requests have skip_special_tokens
--spm-infill | the suffix does not come first
-mm --mmproj FILE | images are seen by models in the Hugging Face layout: kvrt serve DIRECTORY
-mmu --mmproj-url URL | images are seen by models in the Hugging Face layout: kvrt serve DIRECTORY
--image-min-tokens N | images are seen by models in the Hugging Face layout: kvrt serve DIRECTORY
--image-max-tokens N | images are seen by models in the Hugging Face layout: kvrt serve DIRECTORY
--mtmd-batch-max-tokens N | images are seen by models in the Hugging Face layout
--video-fps N | there are no videos
--video-timestamp-interval N | there are no videos
--video-ffmpeg-dir DIR | there are no videos
--media-path DIR | clients send images themselves
--path DIR | files are not served
--cors-origins ORIGINS | pages of other sites may not ask: put a proxy before it that lets them
--cors-methods METHODS | pages of other sites may not ask: put a proxy before it that lets them
--cors-headers HEADERS | pages of other sites may not ask: put a proxy before it that lets them
--cors-credentials | pages of other sites may not ask: put a proxy before it that lets them
--no-cors-credentials | pages of other sites may not ask: put a proxy before it that lets them
--api-prefix PREFIX | put a proxy before it that adds one
--ui-mcp-proxy --webui-mcp-proxy | no request makes the server connect to anywhere
--tools NAMES | the server runs no tools
--tools-runtime OPTION | the server runs no tools
--mcp-servers-config FILE | the server runs no tools
--mcp-servers-json JSON | the server runs no tools
-ag --agent | the server runs no tools
--ssl-key-file FILE | put a proxy before it that speaks TLS
--ssl-cert-file FILE | put a proxy before it that speaks TLS
--slot-save-path DIR | cached pages are kept by kvrt serve --cache-dir
--models-dir DIR | several models are served by kvrt serve --models
--models-preset FILE | several models are served by kvrt serve --models
--no-jinja | chat templates are Jinja's
-rea --reasoning MODE auto | requests have chat_template_kwargs: {"enable_thinking": false}
--reasoning-effort LEVEL default | requests have chat_template_kwargs
--reasoning-budget N -1 | reasoning ends by itself
--reasoning-budget-message TEXT | reasoning ends by itself
--skip-chat-parsing | answers to /completion are as the model says them
--no-prefill-assistant | an assistant's last message is continued
--sleep-idle-seconds N -1 | a model sleeps with kvrt ctl sleep
--log-prompts-dir DIR | what was asked is written nowhere
--spec-synth-len N | it is for measuring llama.cpp alone
--spec-synth-rates RATES | it is for measuring llama.cpp alone
--embd-gemma-default | name a model with -m or -hf
--fim-qwen-1.5b-default --fim-qwen-3b-default --fim-qwen-7b-default | name a model with -m or -hf
--fim-qwen-7b-spec --fim-qwen-14b-spec --fim-qwen-30b-default | name a model with -m or -hf
--gpt-oss-20b-default --gpt-oss-120b-default | name a model with -m or -hf
--vision-gemma-4b-default --vision-gemma-12b-default | name a model with -m or -hf
-cl --cache-list | kvrt models lists which architectures run
--list-devices | kvrt run --list-devices lists them
--completion-bash | it completes llama.cpp's words alone
"""
"""A line is the names of an option, a word for its value, a value that is as if it were not there,
and why it is refused."""

GIVEN = "kvrt.passed"
"""Where a command's context has what was passed over."""


def _note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value not in (None, False, ()):
        ctx.meta.setdefault(GIVEN, []).append(param.opts[-1])


def _refusing(off: str, why: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value in (None, False) or (off and _same(value, off)):
            return
        raise click.UsageError(f"{param.opts[-1]} is not offered: {why}", ctx)

    return refuse


def _same(value: str, off: str) -> bool:
    try:
        return float(value) == float(off)
    except ValueError:
        return value == off


def _option(line: str, callback: Callable[..., None]) -> tuple[Decorator[Any], list[str]]:
    """An option that nobody sees in ``--help``, and what its line has behind its names."""
    words = line.split()
    names = [word for word in words if word.startswith("-") and not word[1:].isdigit()]
    rest = words[len(names) :]
    own = names[-1].lstrip("-").replace("-", "_").replace(".", "_")
    how: dict[str, Any] = {"metavar": rest[0]} if rest else {"is_flag": True}
    if rest and rest[0].startswith("["):  # older clients give it without a value
        how |= {"is_flag": False, "flag_value": "on"}
    made = click.option(
        *names, f"other_{own}", expose_value=False, hidden=True, callback=callback, **how
    )
    return made, rest


def _passed() -> list[Decorator[Any]]:
    return [_option(line, _note)[0] for line in PASSED.strip().splitlines()]


def _refused() -> list[Decorator[Any]]:
    made = []
    for line in REFUSED.strip().splitlines():
        head, _, why = line.partition(" | ")
        off = head.split()[-1] if len(_option(head, _note)[1]) > 1 else ""
        names = head.removesuffix(off) if off else head
        made.append(_option(names, _refusing(off, why))[0])
    return made


other_options = apply([*_passed(), *_refused()])
"""All of them."""
