r"""What a command's help says after its options: how it is used, and what to know of its numbers.

Lines after a ``\b`` are shown as they stand; the others are wrapped to the terminal.
"""

from __future__ import annotations

from halludecode import serve


def as_it_stands(doc: str) -> str:
    """The code at the end of a docstring, from its ``::`` on, which is not to be wrapped."""
    code = doc.partition("::\n\n")[2].rstrip()
    return "\n\n".join(f"\b\n{part}" for part in code.split("\n\n"))


LIST = """
A strategy is named by a string: NAME, NAME(parameter=value,...), or several joined by +, such as
"var+vcd(alpha=0.5)". Results name the same string with every parameter spelt out. NAME@PRESET
takes a paper's own numbers for a model (configs/strategies). Strategies of other packages join
through the entry-point group halludecode.strategies.

--kind is read off the hooks that a strategy has: search (beams), steering (hidden states),
attention (of the main row), layers (early ones decoded), contrast (rows beside main that the scores
are made of), other (none of these). One of several kinds is listed under each.

"needs" is what a strategy asks of an engine, "rows" are the copies of a prompt that share one
forward pass, "cost" is what that adds to plain decoding, "equals greedy at" are the values at
which it must write greedy's tokens, one by one, which the tests hold it to.
"""

GENERATE = """
\b
  halludecode generate --model testbed --image testbed:3 --prompt "Describe it." --strategy vcd
  halludecode generate --model testbed --image testbed:3 --prompt "Describe it." --explain why.html

--engine vllm runs the same strategies inside vLLM's continuous batching, on the stock wheel; in
float32 both engines write the same tokens. opera needs engine hf. In Python, hd.load(model,
engine="vllm") takes vLLM's own options too (max_model_len=, kv_cache_memory_bytes=, ...);
tensor_parallel_size= and data_parallel_size= serve every strategy that one process does (tensor
parallel on a CPU with one NUMA node needs VLLM_CPU_OMP_THREADS_BIND=nobind).

--explain writes one page: each word shaded by its grounding (log p with the image minus log p
without it, in nats), suspicious object words underlined, and under the pointer or the Tab key
where the model looked. In Python hd.generate(..., explain=True) fills output.explanation;
explain="maps" adds maps. Tokens stay the same; the cost is one image-free row, which m3id and pai
have anyway. How well the numbers find invented words is in benchmarks/grounding.md: better than
chance, far from a verdict.

--bad-word, --allowed-token-id and --logit-bias act on every row before rows are combined and before
implausible tokens are cut off; a bad word is its tokens at the beginning of a text or after a
blank. --logprobs are of the combined scores: -inf for a token that is banned or cut off, 0 for one
that is left alone.

The model's placeholder (<image> for LLaVA) in a prompt is the place of a picture, and a prompt that
has one is used as it stands, without the chat template; everywhere there must be as many as
pictures. --messages takes the roles system, developer, user, assistant and tool, as far as the
model's template does.

A request without a picture is answered greedily, and says so.
"""

DOCTOR = """
\b
  halludecode doctor
  halludecode doctor --verify testbed --strategy vcd --strategy pai
  halludecode doctor --family qwen3_vl

--verify asks one question about one picture, 16 tokens, greedily. A line a strategy: "ok" and what
it changed; "changed nothing here"; "refused" and why; "differs", from greedy at its off point or
from the other engine; "failed"; "not run", where the time was over. Exit code 1 where one differs
or failed. Tokens may differ where the two likeliest were nearer than rounding (1e-4 nats in
float32, 0.03 in float16, 0.25 in bfloat16). Descriptions that a strategy writes first are cut to 16
tokens too.
"""

EVAL = """
\b
  halludecode eval --model testbed --tasks pope,chair,mme --strategy greedy --strategy vcd \\
      --output runs/first
  halludecode compare runs/first
  halludecode report runs/first --format html --output first.html

Rules are the official ones of each benchmark. Where published scripts disagree (three POPE
parsers, two CHAIR word families) the official one is the default, the others are options, and the
number of unparsed answers is always reported. CHAIR's wordnet family needs NLTK's data to be
NLTK's to the letter; where that is not installed, an own tokeniser and a shipped tagger take its
place, which agree with it on every published caption we have. Which one ran is in run.json.

Prompts: the words put around a question move POPE more than most strategies do, so they are part
of a named protocol (--prompt-preset): words, token limit, last sentence. opera-512 and opera-64
are OPERA's (the latter drops the unfinished sentence, which moves CHAIR_s by five points), ritual
is 64 tokens as they come. --image-ids chair500 takes the 500 COCO images that OPERA published
captions of; --family opera_published scores as its table does.

Data: for a model other than the testbed, say where they are. --data takes a hub id
(owner/name[:config][@revision], read as a stream under --limit), a folder or a VLMEvalKit table;
--images and --annotations take pictures with a question file or COCO instances; --columns
OURS=THEIRS names columns that are called otherwise.

Runs: a run folder holds every answer with the resolved parameters, data hash, model hash, seed
and versions. A run that was interrupted resumes and ends with the same results. Every metric has
a 95 % interval; `halludecode compare` sets controls beside each difference.

Servers: --server http://host:8000 (repeat it for replicas) takes a running `halludecode serve`
for the engine: the same samples, strategies and scores, a bounded number of requests at a time
(--concurrency), tried again with growing pauses when the server is busy; what it refuses is a
failed sample with its sentence. In Python: hd.load(url, engine="server").

Jobs of a cluster: --shard K/N asks about every N-th picture alone, into a folder of its own;
`halludecode merge FOLDER... --output DIR` joins the N folders into the run that one job would have
left, results and all. --engine-arg KEY=VALUE is for whatever else an engine takes.

\b
  halludecode eval ... --shard $SLURM_ARRAY_TASK_ID/8 --output runs/part-$SLURM_ARRAY_TASK_ID
  halludecode merge runs/part-* --output runs/whole

Any option may come from a file instead, where flags win over the file:

\b
  halludecode eval --config run.yaml

\b
  model: llava-hf/llava-1.5-7b-hf
  engine: {name: hf, dtype: bfloat16, batch_size: 8}
  strategies: [greedy, vcd, {vcd: {alpha: 0.5}}, "var+vcd"]
  tasks: [pope]
  data: [path/to/pope]
  output: runs/llava
"""

SCORE = """
\b
  halludecode score --task pope --predictions answers.jsonl --annotations questions.jsonl

Scores answers made elsewhere. AMBER (descriptions and questions) and HallusionBench (read by a
rule in place of GPT-4) need their annotation files. --details F writes every caption's words and
objects as the CHAIR script does, --synonyms F looks for object words of your own; --relabel F
scores POPE answers again under RePOPE's labels; folders in place of files score all splits and
their mean.

Files of other kits are read by what is in them: POPE's own {question, answer}, question records
with a prediction, LLaVA's file of all splits, lmms-eval's samples, VLMEvalKit's tables, captions
under any usual name, COCO file names as ids, our own samples.jsonl. A sentence says which column
was taken; where two could be the answer, or one could be the question or the truth, --columns
answer=NAME decides. --answers final reads what a thinking or chatty model finally says.
"""

IMPORT = """
\b
  halludecode import --task pope --predictions greedy=a.jsonl --predictions vcd=b.jsonl \\
      --annotations questions.jsonl --output runs/theirs
  halludecode compare runs/theirs
  halludecode report runs/theirs --format html --output theirs.html

Answers made elsewhere become a run folder like any other: intervals, paired tests, controls, the
sample browser. Files are read by what is in their columns, as score does, and a sentence says
which column was taken for the answers. Where systems answered different samples, the shared part
counts and left_out says how much does not. --model, --temperature and the like are recorded as
you state them; nothing else is known of the run.
"""

REPORT = """
\b
  halludecode report runs/first --format html --output first.html
  halludecode report runs/first --format latex --output paper

The page begins with an answer for each headline: which strategy, by how much, and whether that is
sure (the interval leaves out zero, Holm's correction, the controls).

latex writes a folder: tables.tex (booktabs; bold where the interval of the paired difference lies
on the better side of zero, a letter for what its controls leave of it), methods.tex (model,
prompts, versions, data hashes, citations), references.bib, figures as PDF and SVG, and paper.tex,
which shows it all: pdflatex paper; bibtex paper; pdflatex paper twice (booktabs and graphicx).
"""

REPRODUCE = """
\b
  halludecode reproduce runs/first/run.json --output runs/again

Every eval writes its options into run.json. This asks the same again, of the model, strategies,
data and seed named there, and lists which versions, weights, hardware, data hashes, answers and
scores are not the same. Paths stand there as they were given: run it where they lead to the same.
"""

SWEEP = """
\b
  halludecode sweep --model testbed --tasks pope --strategy "vcd(alpha={0.1..2:10})" --output runs/s
  halludecode eval --config runs/s/best.yaml --output runs/best

{a,b,c} are these values, {a..b:n} n numbers from a to b, {a..b} whole numbers; several braces are
all their combinations. The best setting on the development pictures (--dev) is run once on the
pictures of --data, beside greedy: only that second number says how good it is, as the best of many
is partly lucky. p values on the development pictures are multiplied by the number of settings that
the folder ever tried (Bonferroni). With --dev 0.3, three tenths of the pictures of --data choose
and the rest reports. Pictures that are on both sides are refused.

Settings share what they agree in: one reading of the prompt, equal rows beside it, and every step
while their answers are the same (engine hf; settings that edit the model's inside differently run
apart). The answers are those of single runs. The last line says what all settings cost against one,
measured at the start on a batch.

The folder holds dev/ and test/ (run folders, for compare and report), sweep.json, a drawing for
each parameter (PNG, PDF, SVG), best.yaml, and presets/NAME.yaml as in configs/strategies.
"""

COMPARE = """
\b
  halludecode compare runs/first
  halludecode compare a.jsonl b.jsonl --task pope --annotations questions.jsonl

Comparisons are paired, sample by sample, with exact or bootstrapped p-values and Holm's
correction. Beside a difference stand its controls: accuracy at greedy's yes-ratio, CHAIR at equal
length, and, where tokens are sampled, truncation alone (apc_only) and temperature alone (scaled).
"""

CALIBRATE = """
\b
  halludecode calibrate --model testbed zerotuning

Some strategies need numbers of a model that only the model can give: which heads matter, or a
trained prompt. --data says from what they are made; vti reads pairs of captions (--annotations with
lines of image, value and h_value), adaiat a run of chair (its samples.jsonl as --annotations). The
result is named by its content and kept in your own folder; a spec that names the strategy finds it,
the run record says which it was, and nothing else ever uses it. Without one such a strategy refuses
and prints this command.
"""

HEADS = """
\b
  halludecode heads --model testbed --metric vhd --metric mass --output runs/heads

vhd is how far a head's output moves when the image goes, mass its attention on the image, sinks
apart, ablation what silencing it does to the right answer (needs --data). Written are pictures,
JSON with intervals, stability over halves, and how far metrics agree. A map becomes a strategy:
vhr(map=runs/heads/vhd.json), spin(map=...), adhh(map=runs/heads/ablation.json). A page to read:
notebooks/head_sensitivity.ipynb.
"""

SINKS = """
\b
  halludecode sinks --model testbed --output runs/sinks

Sinks are dimensions and visual tokens that take attention whatever they show.
"""

SERVE = f"""
\b
  halludecode serve --model testbed --strategy vcd --api-key secret --alias m3id

This is vLLM's own OpenAI server with strategies. A request names its strategy in vllm_xargs, by
the model name MODEL:STRATEGY, as in "testbed:vcd(alpha=0.5)" (those given with --alias are listed
in /v1/models, the others are not), or takes the server's default. --allow vcd lets clients choose
vcd's parameters, --allow "vcd(alpha=0.5)" does not. Any OpenAI client works unchanged:

{as_it_stands(serve.__doc__ or "")}

Every answer, and every chunk of a streamed one, names the canonical strategy applied. stream, n,
seed, stop and penalties act on the combined distribution. What bans, allows or pushes tokens
(allowed_token_ids, bad_words, logit_bias, min_tokens, response_format, structured_outputs) acts on
every row before that. Plain requests with any of these, with a seed and a temperature, or with a
temperature beyond vLLM's bounds take the same path, so that greedy, seeded and banned answers have
the tokens of engine hf with every strategy and without; other plain requests, and those with tools,
are vLLM's own, whose noise differs. Logprobs are of the combined scores: -9999 is a token that is
banned or cut off as implausible, 0 one that is left alone. Tools and other endpoints are for plain
requests; with a strategy they are refused. A field that nobody reads is refused, too, and one that
is false, zero or empty counts as given.

Plain requests and strategies read the same prompt: with the roles system, developer, user,
assistant and tool, chat_template_kwargs, reasoning_effort, continue_final_message and
add_generation_prompt, as far as the model's chat template does. Its image placeholder in a text is
the place of a picture everywhere: as many as there are pictures, or the request is refused. Prompts
begin with the tokenizer's own first token where the model's processor writes it, unlike bare vLLM.

With --api-key (or VLLM_API_KEY) everything but GET of /health, /ping, /version, /metrics and /load
needs the key. A strategy in a request may not name a file of the server; aliases and the default
may. Pictures are limited by bytes, by pixels each and by pixels of a request, before any is
decoded; two are decoded at a time. A remote picture may take --image-fetch-seconds; a connection is
closed that has not sent a request's headers within 20 s, and its body may take 60 s more.

On SIGTERM open answers end with an error (503, or an event of a stream) and the process ends within
seconds; with vLLM's --shutdown-timeout they are first written for so long. The engine's process
ends with its front end, however that one ended.

What cannot be served is one sentence with HTTP 400 (numbers included where a group cannot fit),
404 for a model, 413 for a body, 422 for a picture that cannot be fetched, 429 for more answers
under strategies at a time than --max-groups. Remote images are fetched without following
redirects. A client that leaves frees every row.

/metrics has, by strategy (all composed ones as "composed"), halludecode_requests_total,
_request_seconds, _prepare_seconds, _generated_tokens_total, _changed_tokens_total and
_running_rows. --tensor-parallel-size and --data-parallel-size work as in vLLM (all rows of a
request go to one replica); there is one front end per server.
"""
