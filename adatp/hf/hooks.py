"""The hooks that apply a method to one model instance, and their removal.

Only hooks and methods of the instance are used; no class is changed. In a call they run in this order: `generate` gives
the length of the prompt; the body's hook finds the videos in it; the decoder's forward runs each prompt alone; the
hook of a pruned decoder layer cuts its input before the layer runs; and each layer's MLP runs on a block of tokens at a
time.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adatp.errors import Unsupported
from adatp.hf.asked_logits import AskedLogits
from adatp.hf.batch import Batch
from adatp.hf.batch_prefill import BatchPrefill
from adatp.hf.call import Call, Question
from adatp.hf.compiled_layers import CompiledLayers
from adatp.hf.decoding import Decoding
from adatp.hf.features import questions_of, see_again
from adatp.hf.instance import InstanceChanges
from adatp.hf.last_layers import LastLayers
from adatp.hf.prompt_prefill import PromptPrefill
from adatp.hf.setup import Setup
from adatp.hf.support import (
    CONTINUOUS_BATCHING,
    MARK,
    brings_video,
    check_gradients,
    check_support,
    is_continued,
    prepare,
    refuse_continuous_batching,
    refuse_copying,
)
from adatp.hf.tracing import in_prefill, is_decoding
from adatp.hf.turns import Turns
from adatp.report import PruningReport, passed_through
from adatp.tensors.blocks import in_blocks


class Hooks:
    """A method in a model.

    Args:
        model: the model instance.
        setup: the method on it.
        question: question for all threads that set none; see `adatp.Pruned.question`.
        compile_layers: whether decoder layers run through `torch.compile` in a prefill.

    Attributes:
        call: state of the calling thread's current call.
        report: report of the last prefill of any thread; None before the first one, and after one that has failed.
    """

    def __init__(self, model: Any, setup: Setup, question: Question, *, compile_layers: bool) -> None:
        self.call = Call()
        self.report: PruningReport | None = None
        self._model = model
        self._setup = setup
        self._question = question
        self._running = 0  # number of running prefills, of all threads
        self._lock = threading.Lock()
        self._changes = InstanceChanges()
        self._decoding = Decoding(setup)
        self._compiled = CompiledLayers(setup.family) if compile_layers else None
        self._last_layers = None if self._compiled is None else LastLayers(self._compiled)
        self._turns = None if self._compiled is None else Turns(self._compiled)
        self._signature = inspect.signature(setup.family.body.forward)
        self._generate_signature = inspect.signature(model.generate)
        self._install()

    def remove(self) -> None:
        """Restore the model. A second call does nothing.

        Raises:
            RuntimeError: a prefill is running, in this thread or another.
        """
        with self._lock:
            if self._running:
                raise RuntimeError(
                    "a method cannot be removed in the middle of a prefill; wait for generate() to return"
                )
            if not self.is_installed:
                return
            self._changes.undo()
            del self._model.__dict__[MARK]

    @property
    def question(self) -> Question:
        """The question that the calling thread has set, or else the question given to `apply`."""
        return self.call.question[0] if self.call.question else self._question

    @question.setter
    def question(self, question: Question) -> None:
        self.call.question = (question,)

    @property
    def is_installed(self) -> bool:
        """Whether the method is still in the model."""
        return self._model.__dict__.get(MARK) is self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return refuse_copying()

    def _install(self) -> None:
        model, family, method, changes = self._model, self._setup.family, self._setup.method, self._changes
        changes.handles = [
            model.register_forward_pre_hook(self._on_model, with_kwargs=True),
            model.register_forward_hook(self._on_return, always_call=True),
            family.body.register_forward_pre_hook(self._on_prompt, with_kwargs=True),
            family.body.register_forward_hook(self._on_end, with_kwargs=True, always_call=True),
        ]
        asked = self._setup.asked
        for index, layer in enumerate(family.decoder.layers):
            if index >= min([method.first_pruned(self._setup.layers), *asked]):
                hook = functools.partial(self._on_layer, index)
                changes.handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            changes.replace(family.mlp(layer), "forward", self._run_mlp)
            changes.replace(family.mlp(layer), "__reduce_ex__", refuse_copying)
            changes.replace(layer, "__reduce_ex__", refuse_copying)
            if self._compiled is not None:
                changes.replace(layer, "forward", functools.partial(self._run_layer, index))
            if index in asked and (self._compiled is None or method.decoding is not None):
                projection = family.query_projection(layer)
                changes.handles.append(projection.register_forward_hook(functools.partial(self._on_query, index)))
        if self._compiled is not None:
            self._compiled.own_hooks = {handle.id for handle in changes.handles}
        changes.replace(family.body, f"get_{family.modality}_features", self._encode)
        changes.replace(family.decoder, "forward", self._run_decoder)
        for name, replacement in family.replacements(self._left).items():
            changes.replace(family.decoder, name, replacement)
        changes.replace(model, "generate", self._generate)
        for module in (model, family.body, family.decoder):
            changes.replace(module, "__reduce_ex__", refuse_copying)
        changes.replace(model, "_replicate_for_data_parallel", refuse_copying)
        for name in CONTINUOUS_BATCHING:
            if hasattr(model, name):
                changes.replace(model, name, refuse_continuous_batching)
        model.__dict__[MARK] = self

    # The hooks follow in the order in which they run in a call.

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = self.call
        if self._turns is not None:
            self._turns.take()  # from transformers 5.18 on the vision tower runs before the model's forward
        try:
            given = self._generate_signature.bind_partial(*args, **kwargs).arguments
            prepared = prepare(self._model, self._setup, {**given, **kwargs})
            with call.generating(prepared.ids, prepared.sizes, continued=prepared.continued):
                if prepared.batch is not None:
                    readable = given.get("inputs_embeds", kwargs.get("inputs_embeds")) is None
                    call.unasked = questions_of(self._setup, prepared.batch, self.question, readable=readable)
                return generate(*args, **{**kwargs, **prepared.changed})
        finally:
            if self._turns is not None:
                self._turns.give_back()

    def _on_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse labels before the model runs; it would fail on them, but only after the prefill."""
        labels, input_ids = kwargs.get("labels"), kwargs.get("input_ids")
        if labels is not None and input_ids is not None and self._setup.family.has_video(input_ids):
            raise Unsupported("labels cannot be given: a pruned prefill has logits only for the kept tokens")
        if self._turns is not None:
            self._turns.take()

    def _on_return(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Let the next thread through after the model has returned or raised."""
        if self._turns is not None:
            self._turns.give_back()

    def _on_prompt(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the videos before the body runs."""
        if not is_decoding(args, kwargs):
            self._find_prompt(args, kwargs)

    @torch.compiler.disable
    def _find_prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the prompts' ids and mask, before any of the prefill is queued."""
        call, family = self.call, self._setup.family
        given = self._signature.bind_partial(*args, **kwargs).arguments
        call.prefill = None
        input_ids, cache = given.get("input_ids"), given.get("past_key_values")
        encoded = (given.get("mm_encoder_outputs") or {}).get(family.modality)
        if is_continued(cache, arrives=brings_video(family, given, input_ids)):
            # the prompt was pruned before, the new tokens are not; in decoding nothing is read from the device
            if input_ids is not None and input_ids.shape[1] > 1 and call.prompts is None:
                is_continued(cache, arrives=family.has_video(input_ids))
            return
        ids: Tensor = family.ids_of(given["inputs_embeds"]) if input_ids is None else input_ids.cpu()
        length = call.prompt_length(ids)
        call.is_own = length is not None
        self._show(None)
        if not family.has_video(ids):
            unseen = " (in inputs_embeds a video is found by its placeholders' embeddings)" if input_ids is None else ""
            self._show(passed_through(f"no video in the prompt{unseen}"))
            return
        check_support(self._setup, cache)
        check_gradients(family.body.parameters())
        # read again even after `prepare`: `generate` may have added a mask, copies of the prompts, or a draft
        mask = given.get("attention_mask")
        sizes = family.sizes(given) or (call.sizes if call.is_own else None)
        batch = Batch.read(family, ids, mask, sizes=sizes, prompt_length=length, prepared=call.is_own)
        questions = questions_of(self._setup, batch, self.question, readable=input_ids is not None)
        asked = AskedLogits(kwargs.get("logits_to_keep", 0), batch, ids.shape[1])
        call.unasked = questions
        call.prefill = BatchPrefill(self._setup, batch, questions, asked)
        call.prefill.encoded = encoded
        with self._lock:
            self._running += 1

    def _encode(self, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kept = self._setup.family.encoder_kwargs(attention=self._setup.wants_tower)
        encoded = encode(*args, **{**kept, **kwargs})
        see_again(self._setup.family, self._setup.relevance, encode, args, kwargs, encoded)
        self._hand_over(encoded)
        return encoded

    @torch.compiler.disable
    def _hand_over(self, encoded: Any) -> None:
        """Run the text tower while the device runs the vision tower, and give the prefill its encoded frames."""
        call = self.call
        questions, call.unasked = call.unasked, None
        if questions is not None and any(questions):
            assert self._setup.questions is not None
            self._setup.questions.features([question or "" for question in questions])  # remembered
        if call.prefill is not None:
            call.prefill.encoded = encoded

    def _run_decoder(self, decoder: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._prefill_prompts(kwargs["inputs_embeds"], decoder, args, kwargs)

    def _decoder_itself(self, _: Tensor, decoder: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        return decoder(*args, **kwargs)

    @in_prefill(traced=_decoder_itself)
    def _prefill_prompts(self, _: Tensor, decoder: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        prefill = self.call.prefill
        return decoder(*args, **kwargs) if prefill is None else prefill.run(decoder, kwargs)

    def _on_layer(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._enter(args[0] if args else kwargs["hidden_states"], index, args, kwargs)

    def _enter_decoding(self, hidden: Tensor, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, self._decoding.enter(index, hidden, kwargs)

    @in_prefill(traced=_enter_decoding)
    def _enter(self, hidden: Tensor, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prompt = self._prompt()
        if prompt is None:
            return self._enter_decoding(hidden, index, args, kwargs)
        hidden, kwargs = prompt.enter(index, hidden, kwargs)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _run_layer(self, index: int, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._run_compiled(args[0] if args else kwargs["hidden_states"], index, layer, args, kwargs)

    def _layer_itself(self, _: Tensor, index: int, layer: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        return layer(*args, **kwargs)

    @in_prefill(traced=_layer_itself)
    def _run_compiled(
        self, hidden: Tensor, index: int, layer: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        compiled, last_layers, prompt = self._compiled, self._last_layers, self._prompt()
        assert compiled is not None
        assert last_layers is not None
        if prompt is not None:
            if prompt.is_through:
                return hidden
            prompt.ask(index, functools.partial(compiled.project, index))
            last = max(prompt.cuts.ratios)
            if index == last >= self._setup.family.added_layers and last_layers.takes(index, hidden):
                prompt.is_through = True
                return last_layers.run(index, hidden, kwargs)
        prefill = self.call.prefill
        if prefill is not None and compiled.hooked(index):
            prefill.note(
                "decoder layers ran uncompiled, because there are hooks inside them: transformers leaves hooks for "
                "good after a request for hidden states or attentions; load the model again to compile its layers"
            )
        if prefill is None or not compiled.takes(index, hidden):
            return layer(*args, **kwargs)
        return compiled.run(index, hidden, kwargs)

    def _on_query(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if torch.compiler.is_dynamo_compiling() and self._compiled is not None:
            return  # the queries that score come from a second graph
        self._project(output, index)

    def _project_decoding(self, output: Tensor, index: int) -> None:
        self._decoding.project(index, output)

    @in_prefill(traced=_project_decoding)
    def _project(self, output: Tensor, index: int) -> None:
        prompt = self._prompt()
        if prompt is None:
            self._decoding.project(index, output)
        else:
            prompt.project(index, output)

    def _prompt(self) -> PromptPrefill | None:
        """Return the prompt in the decoder if the calling thread is in a prefill, else None."""
        prefill = self.call.prefill
        return None if prefill is None else prefill.prompt

    def _left(self) -> Tensor | None:
        """Return `[W]` indices in the prompt of the tokens that are left of it; None if all are, or in decoding."""
        prompt = self._prompt()
        return None if prompt is None else prompt.cuts.left

    def _run_mlp(self, mlp: Callable[..., Any], hidden: Tensor) -> Any:
        """Run the MLP in blocks; before the first cut its intermediates would be most of the prefill's memory."""
        whole = torch.compiler.is_dynamo_compiling() or self.call.prefill is None
        return mlp(hidden) if whole else in_blocks(mlp, hidden, 1)

    def _on_end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Finish the prefill after the body, whether it returned or raised."""
        if not is_decoding(args, kwargs):
            self._finish(output is not None)

    @torch.compiler.disable
    def _finish(self, succeeded: bool) -> None:
        call = self.call
        prefill, call.prefill = call.prefill, None
        if prefill is None:
            return
        with self._lock:
            self._running -= 1
        if succeeded:
            self._show(prefill.report())
            if self._compiled is not None:
                self._compiled.warmed()

    def _show(self, report: PruningReport | None) -> None:
        """Show the report to the user, unless `generate` has made that of its own prompts already."""
        call = self.call
        if not call.reported:
            self.report = call.report = report
            call.reported = call.is_own and report is not None
