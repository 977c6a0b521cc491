"""The vLLM engine: our rows in one continuous batch with everybody else's requests.

vLLM runs as three kinds of process, so this package has three rooms that import nothing of one
another, and what they share: `row_metadata` (travels with every row), `protocol` (calls of
workers), `compat` (what we lean on in vLLM). The life of a request under a strategy:

1. front end: `engine.VLLMEngine` compiles the strategy and `frontend.capacity` refuses what can
   never fit, each in one sentence, before any token.
2. front end: where the strategy reads the plain model first, `frontend.activations` sends those
   passes as requests of our own; workers keep what they read (`worker.capture`), and make the
   request's state of it when they are called (`protocol.PREPARE_STATE`).
3. front end: `frontend.requests` makes one vLLM request of every row. Only the main row is known to
   vLLM's output processor; the others go to the scheduler and are answered to nobody.
4. scheduler: `scheduler.lifetimes` holds rows back until their group is there; from then on
   `scheduler.scheduler` lets them take every token in the same step, and preempts them together.
5. worker: `worker.runner_v1` or `worker.runner_v2`, for whichever of its two model runners vLLM
   chose, says what is in its batch. `worker.step_batch` finds our rows there, `worker.edit_batch`
   what is edited together. Hooks (`worker.hooks`) call `worker.forward_context` at each layer, for
   attention edits, steering, early scores and captures; in a compiled model operations do so, and
   `worker.graphs` keeps a step with edits from CUDA graphs that would leave them out.
6. worker: `worker.sampler` combines a group's logits into its main row, lets vLLM draw from that,
   and gives the token to all rows; so vLLM's penalties, top-p and log-probabilities are of it.
7. scheduler: answers the main row's token alone, and ends the group when the main row ends.
8. front end: `frontend.output_reader` reads tokens, then asks the workers for their report
   (`protocol.REPORT`): which tokens differ, why an answer is void. `frontend.pending` makes the
   `Output` of both, and the workers drop the request's state.
"""
