"""Functions of tensors that stay where they are, replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARMUP_CALLS = 3  # before capture: they create states, compile, and tune kernels


class CaptureError(Exception):
    """A function cannot be captured. The message is the reason; nothing was computed."""


class Captured:
    """A function without arguments; after WARMUP_CALLS calls, one CUDA graph that is replayed.

    A graph launches all kernels of the function at once, with the addresses they had when it was
    captured. The function's inputs and results are tensors that stay where they are, and it never
    waits for the device. What it allocates stays in a memory pool of the graph. Random numbers
    differ between replays, since torch advances the state of its generator. An autocast region
    must begin and end in the function, because cached casts of weights are freed at its end.

    Raises CaptureError at the first call that cannot be captured.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self.function, self.calls = function, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= WARMUP_CALLS:
            self._warm_up()
            return
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()

    def _warm_up(self) -> None:
        """Call the function on the stream of the capture, in order with the work around it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.function()
        torch.cuda.current_stream().wait_stream(self.stream)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Return the graph of a call, which is not computed."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # Meanwhile other threads, such as a tracker's, may use CUDA.
        recording = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
        try:
            with recording:
                self.function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # which `recording` leaves at the other one
            reason = error.__context__ or error  # the first error, before that of its end
            raise CaptureError(str(reason).strip().partition("\n")[0]) from error
        return graph
