"""The devices, of one machine or of several, that share the batches of a training run.

Several devices need the JAX backend: there the update of a whole batch is one program, whatever
the number of devices, so that batch statistics, clusters and clipped gradients are those of the
whole batch. Keras on TensorFlow clips the gradients of each device's shard instead.

Each process of a run with several processes calls the same things in the same order; what they
have to agree on passes through a `DeviceGroup`.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from batches import Batch, BatchShape
from support.backend import has_gpu, keras, on_cpu
from support.buffers import ALIGNMENT
from support.files import UserError

MAX_PIECES = 16  # of an array on its way to a GPU, which takes several at a time
MIN_PIECE = 2**20  # bytes; what is smaller is neither cut nor shared


@dataclasses.dataclass(frozen=True)
class DeviceGroup:
    """The devices of a run; by default the one that the backend chooses.

    Attributes:
        devices: their names.
        process: this process's number.
        processes: how many processes there are.
        distribution: how Keras spreads variables and batches; None: as without it.
    """

    devices: tuple[str, ...] = ()
    process: int = 0
    processes: int = 1
    distribution: keras.distribution.DataParallel | None = None

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.process == 0

    def batch_shape(self) -> BatchShape:
        """The shapes of this process's shard of the batches."""
        # JAX compiles a program for every shape that it meets.
        fixed = keras.backend.backend() == "jax"
        return BatchShape(self.process, self.processes, fixed)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Variables made and batches used inside are spread over the devices.

        Raises:
            UserError: another process of the run has ended.
        """
        with contextlib.ExitStack() as stack:
            if self.distribution:
                stack.enter_context(self.distribution.scope())
            if self.processes > 1:
                stack.enter_context(_lost_peers())
            yield

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.all_reduce_sum(np.array([flag], np.float64))[0])

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes of float64 (n,), the same to the last bit in each."""
        if self.processes == 1:
            return values
        from jax.experimental import multihost_utils

        # JAX's own numbers have 32 bits.
        halves = np.ascontiguousarray(values, np.float64).view(np.uint32)
        gathered = np.asarray(multihost_utils.process_allgather(halves))
        return np.ascontiguousarray(gathered).view(np.float64).sum(axis=0)

    def barrier(self) -> None:
        """Returns when every process has come here."""
        self.any(False)


def sent_ahead(batches: Iterator[Batch]) -> Iterator[dict[str, Any]]:
    """Batches as `to_device` makes them, sent to a GPU while the one before is in use (JAX).

    Otherwise a GPU would wait for as long as a batch is on its way, which in one piece takes longer
    than a fast update (see benchmarks/RESULTS.md).
    """
    with contextlib.closing(batches):
        if not _sends():
            yield from map(to_device, batches)
            return
        sent = None
        for batch in batches:
            earlier, sent = sent, to_device(batch)
            if earlier is not None:
                yield earlier
        if sent is not None:
            yield sent


def to_device(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays as the backend takes them; they must not be written to from now on.

    With JAX they are on their way to a GPU. With TensorFlow on a CPU, which would copy them twice,
    large ones become tensors in the same memory. Else, and where several devices share them, they
    stay what they are, and so does what is there already.
    """
    return device_sender()(arrays)


def device_sender() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`to_device` for other threads: only the calling one knows whether several devices share."""
    if _sends():
        take = _send
    elif keras.backend.backend() == "tensorflow" and on_cpu():
        take = _share
    else:
        return lambda arrays: arrays
    return lambda arrays: {
        name: take(x) if isinstance(x, np.ndarray) else x for name, x in arrays.items()
    }


def _sends() -> bool:
    on_jax = keras.backend.backend() == "jax"
    # Keras keeps the distribution for each thread.
    return on_jax and has_gpu() and not keras.distribution.distribution()


def _send(x: np.ndarray):
    import jax

    pieces = min(MAX_PIECES, len(x), x.nbytes // MIN_PIECE)
    if pieces < 2:
        return jax.device_put(x)
    return jax.numpy.concatenate(jax.device_put(np.array_split(x, pieces)))


def _share(x: np.ndarray):
    import tensorflow as tf

    # TensorFlow aborts the process on memory that is not aligned.
    fits = x.flags.c_contiguous and x.flags.writeable and x.ctypes.data % ALIGNMENT == 0
    if x.nbytes < MIN_PIECE or not fits:
        return x
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__())


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints, of a run with one or several."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return jax.process_index() == 0


def initialize_distributed(
    coordinator: str, num_processes: int, process_id: int, timeout: int = 100
) -> None:
    """Makes this process one of several that train together; to be called before all else.

    Args:
        coordinator: HOST:PORT, an address of process 0 that all can reach, with a free port.
        num_processes: how many there are.
        process_id: this one's number, counted from 0.
        timeout: seconds without a sign of life after which a process counts as lost.

    Raises:
        UserError: arguments that don't fit, another backend, processes that are not there.
    """
    if keras.backend.backend() != "jax":
        raise UserError(
            "coordinator: several processes need the JAX backend: set KERAS_BACKEND=jax"
        )
    if not re.fullmatch(r"[^\s,]+:\d+", coordinator):
        raise UserError(f"coordinator: {coordinator!r} is not allowed; write HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"process_id: {process_id} is not allowed with num_processes={num_processes}; "
            "processes count from 0"
        )
    import jax

    # Without these two, CPUs could not work together, and JAX would take SIGTERM for itself.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"coordinator: the {num_processes} processes did not meet at {coordinator} ({reason})"
        ) from error


def select_devices(num_devices: int, batch_size: int) -> DeviceGroup:
    """The devices of a run.

    Args:
        num_devices: how many of each process's devices to take; 0: all, on TensorFlow one.
        batch_size: B, which all devices together must be able to share evenly.

    Raises:
        UserError: there are not so many, or they can't share a batch.
    """
    if keras.backend.backend() != "jax":
        if num_devices > 1:
            raise UserError(
                f"num_devices: {num_devices} devices need the JAX backend: set KERAS_BACKEND=jax"
            )
        return DeviceGroup()
    import jax

    of_process = [
        sorted((d for d in jax.devices() if d.process_index == process), key=lambda d: d.id)
        for process in range(jax.process_count())
    ]
    fewest = min(map(len, of_process))
    if num_devices > fewest:
        raise UserError(f"num_devices: {num_devices} is not allowed; there are {fewest}")
    if num_devices == 0 and max(map(len, of_process)) > fewest:
        raise UserError(f"num_devices: the machines have not equally many; choose up to {fewest}")
    # The shards of a batch stand in the order of the processes.
    chosen = [device for devices in of_process for device in devices[: num_devices or fewest]]
    if batch_size % len(chosen):
        raise UserError(
            f"batch_size={batch_size} can't be shared evenly by {len(chosen)} devices; choose a "
            "multiple of it or another num_devices"
        )
    names = tuple(f"{device.platform}:{device.id}" for device in chosen)
    if len(chosen) == 1:
        return DeviceGroup(names)
    distribution = keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False)
    return DeviceGroup(names, jax.process_index(), jax.process_count(), distribution)


@contextlib.contextmanager
def _lost_peers() -> Iterator[None]:
    """Turns the failure of a communication into one line."""
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # JAX raises some failures of the runtime, whose texts begin with a status, as ValueError.
        if not re.match(r"[A-Z_]+: ", str(error)):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            "an update failed, or another process of this run is lost; the last checkpoint is "
            f"intact: start all of them again with --resume_training=True ({reason})"
        ) from error
