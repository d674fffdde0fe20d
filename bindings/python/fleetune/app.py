"""The idioms of Python around the generated classes."""

import asyncio
from contextlib import asynccontextmanager, suppress

from .fleetune_ffi import (
    DeviceConditions,
    Federation,
    FederationEvent,
    FederationListener,
    Fleetune,
    GenerateOptions,
    KeyStore,
    ModelSource,
    OpenOptions,
    Platform,
    StorageLocation,
    TakePartOptions,
    TokenListener,
    TrainListener,
    TrainOptions,
    background_requirements,
)

_END = object()


class FolderStorage(StorageLocation):
    """Keeps everything in one folder."""

    def __init__(self, folder):
        self._folder = str(folder)

    def folder(self):
        return self._folder


class _Queue:
    """Carries what threads of the library say to one event loop."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()
        self._items = asyncio.Queue()

    def put(self, item):
        # The loop may have ended while the library still had something to say.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def get(self):
        return await self._items.get()


class _Tokens(TokenListener):
    def __init__(self, queue):
        self._queue = queue

    def on_text(self, piece):
        self._queue.put(piece)


class _Steps(TrainListener):
    def __init__(self, act):
        self._act = act

    def on_step(self, step):
        self._act(step)


class _Events(FederationListener):
    def __init__(self, queue):
        self._queue = queue

    def on_event(self, event):
        self._queue.put(event)


async def events(federation: Federation):
    """What happens while the device takes part, until the federation is done."""
    queue = _Queue()
    subscription = federation.subscribe(_Events(queue))
    try:
        while True:
            event = await queue.get()
            yield event
            if isinstance(event, FederationEvent.FINISHED):
                return
    finally:
        subscription.cancel()


class App:
    """A :class:`Fleetune` that is open, with Python's own manners."""

    def __init__(self, fleetune: Fleetune):
        #: The generated object.
        self.fleetune = fleetune
        #: The private store of examples.
        self.examples = fleetune.example_store()

    async def generate(self, prompt, options=None, **fields):
        """Answers ``prompt``; ``fields`` are those of :class:`GenerateOptions`."""
        options = options or GenerateOptions(**fields)
        return await self.fleetune.generate(prompt, options)

    async def stream(self, prompt, options=None, **fields):
        """Answers ``prompt`` piece by piece; leaving the loop ends the writing."""
        options = options or GenerateOptions(**fields)
        queue = _Queue()
        work = asyncio.ensure_future(self.fleetune.generate(prompt, options, _Tokens(queue)))
        work.add_done_callback(lambda _: queue.put(_END))
        try:
            while (piece := await queue.get()) is not _END:
                yield piece
            await work
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await work

    async def train(self, on_step=None, options=None, **fields):
        """Trains on this device's examples; ``fields`` are those of :class:`TrainOptions`."""
        options = options or TrainOptions(**fields)
        listener = _Steps(on_step) if on_step else None
        return await self.fleetune.train(options, listener)

    async def join(self, code):
        """Joins the federation of a join code, once."""
        return await self.fleetune.join(code)

    def federation(self):
        """The federation that this device has joined, or ``None``."""
        return self.fleetune.federation()

    async def take_part(self, federation, requirements=None, rounds=None):
        """Takes part until the federation is done or ``rounds`` are over."""
        requirements = requirements or background_requirements()
        await federation.take_part(TakePartOptions(requirements=requirements, rounds=rounds))

    def close(self):
        """Ends all work and lets go of the folder."""
        self.fleetune.shutdown()


@asynccontextmanager
async def opened(
    model,
    folder,
    *,
    conditions: DeviceConditions = None,
    keys: KeyStore = None,
    storage: StorageLocation = None,
    **options,
):
    """Opens the base model at ``model`` with the app's ``folder``; ``options`` are those of
    :class:`OpenOptions`."""
    platform = Platform(
        storage=storage or FolderStorage(folder), conditions=conditions, keys=keys
    )
    source = ModelSource.FILE(path=str(model))
    app = App(await Fleetune.open(source, platform, OpenOptions(**options)))
    try:
        yield app
    finally:
        # Waits for threads that may have to speak to this very loop.
        await asyncio.get_running_loop().run_in_executor(None, app.close)
