"""A device in a federation of the real server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fleetune
import pytest
from conftest import PATIENCE
from fleetune import (
    AdapterChoice,
    DeviceConditions,
    DeviceState,
    Example,
    FederationError,
    FederationEvent,
    FederationListener,
    JoinError,
    KeyStore,
    PauseReason,
    TakePartOptions,
    ThermalState,
    UpdateFate,
    background_requirements,
)

#: Nothing but a device that is fit, which a machine without conditions always is.
ANYWHERE = TakePartOptions(requirements=background_requirements())

#: Uploads that do not round as the device's own number would have it.
EXACT = 'codec = "f32"'


class Listener(FederationListener):
    def __init__(self, act=None):
        self.heard = []
        self._act = act

    def on_event(self, event):
        self.heard.append(event)
        if self._act:
            self._act(event)

    def kinds(self):
        return {type(event) for event in self.heard}


class Memory(KeyStore):
    """A key store, as a platform would bring one."""

    def __init__(self):
        self.key = None

    def load(self):
        return self.key

    def store(self, key):
        self.key = key


class Device(DeviceConditions):
    """A device whose state the test sets."""

    def __init__(self, **state):
        self.state = {"charging": True, "unmetered": True, "idle": True, **state}

    def current(self):
        if self.state is None:
            raise OSError("no battery service")
        return DeviceState(thermal=ThermalState.NOMINAL, **self.state)


async def fill(app):
    # All the same: each device goes through its examples in an order of its own, and devices are
    # compared.
    for _ in range(6):
        await app.examples.add(Example(instruction="Say 3.", response="It is 3."))


async def until(condition):
    """Waits for what is to come, however busy the machine is."""

    async def wait():
        while not condition():
            await asyncio.sleep(0.02)

    await patient(wait())


async def patient(work):
    return await asyncio.wait_for(work, PATIENCE)


def take_part(model, folder, code, listener=None, **options):
    """A device's whole life in a federation."""

    async def run():
        async with fleetune.opened(model, folder, **options) as app:
            await fill(app)
            federation = await app.join(code)
            subscription = federation.subscribe(listener) if listener else None
            await patient(federation.take_part(ANYWHERE))
            if subscription:
                subscription.cancel()

    asyncio.run(run())


def test_a_device_joins_trains_and_writes_with_the_shared_adapter(model, serve, tmp_path):
    server, keys = serve(), Memory()

    async def run():
        async with fleetune.opened(model, tmp_path / "device", keys=keys) as app:
            assert app.federation() is None
            await fill(app)
            federation = await app.join(server.invite())
            heard = Listener()
            subscription = federation.subscribe(heard)
            await patient(federation.take_part(ANYWHERE))
            subscription.cancel()
            plain = await app.generate("Say 3.", adapter=AdapterChoice.BASE, max_tokens=24)
            tuned = await app.generate("Say 3.", adapter=AdapterChoice.SHARED, max_tokens=24)
            return federation.device(), heard, plain.text, tuned.text

    device, heard, plain, tuned = asyncio.run(run())
    assert keys.key
    assert tuned != plain
    new = [e.round for e in heard.heard if isinstance(e, FederationEvent.NEW_ADAPTER)]
    # The third is what the federation ended with.
    assert new == [1, 2, 3]
    steps = [(e.step, e.of) for e in heard.heard if isinstance(e, FederationEvent.TRAINING)]
    assert steps == [(1, 3), (2, 3), (3, 3)] * 2
    done = [e for e in heard.heard if isinstance(e, FederationEvent.ROUND_DONE)]
    assert [(e.round, e.fate) for e in done] == [(1, UpdateFate.ACCEPTED()), (2, UpdateFate.ACCEPTED())]
    assert isinstance(heard.heard[-1], FederationEvent.FINISHED)
    about = json.loads((tmp_path / "device/adapters/shared/fleetune.json").read_text())
    assert about == {"template": "alpaca", "round": 3}

    # Opened again, the device is still the same one, without a code.
    async def again():
        async with fleetune.opened(model, tmp_path / "device", keys=keys) as app:
            federation = app.federation()
            assert federation.device() == device
            await patient(federation.take_part(ANYWHERE))

    asyncio.run(again())


def test_conditions_pause_training_and_the_result_is_the_same(model, serve, tmp_path):
    calm = serve("calm", rounds=1, training=EXACT)
    take_part(model, tmp_path / "one", calm.invite())
    stormy = serve("stormy", rounds=1, training=EXACT)
    device = Device()

    async def run():
        async with fleetune.opened(model, tmp_path / "two", conditions=device) as app:
            await fill(app)
            federation = await app.join(stormy.invite())
            paused = threading.Event()

            def act(event):
                if isinstance(event, FederationEvent.TRAINING) and event.step == 1:
                    device.state["charging"] = False
                    federation.device_changed()
                    # The library's own thread looks at the device; this one trains.
                    assert paused.wait(PATIENCE)
                if isinstance(event, FederationEvent.PAUSED):
                    paused.set()

            heard = Listener(act)
            subscription = federation.subscribe(heard)
            work = asyncio.ensure_future(federation.take_part(ANYWHERE))
            await asyncio.get_running_loop().run_in_executor(None, paused.wait, PATIENCE)
            done, _ = await asyncio.wait([work], timeout=1.5)
            assert not done
            steps = sum(isinstance(e, FederationEvent.TRAINING) for e in heard.heard)
            assert steps == 1, "no step is taken while the device is not charging"
            device.state["charging"] = True
            await patient(work)
            subscription.cancel()
            return heard

    heard = asyncio.run(run())
    assert FederationEvent.PAUSED(reason=PauseReason.NOT_CHARGING()) in heard.heard
    assert FederationEvent.RESUMED in heard.kinds()
    assert calm.adapter() == stormy.adapter()


def test_nothing_is_sent_from_a_device_that_must_not_and_a_failing_platform_holds_back(
    model, serve, tmp_path
):
    server, device = serve(rounds=1), Device(unmetered=False)

    async def run():
        async with fleetune.opened(model, tmp_path / "device", conditions=device) as app:
            await fill(app)
            federation = await app.join(server.invite())
            heard = Listener()
            subscription = federation.subscribe(heard)
            work = asyncio.ensure_future(federation.take_part(ANYWHERE))
            await until(lambda: heard.heard)
            # However long one waits, nothing else happens.
            await asyncio.sleep(1)
            assert heard.kinds() == {FederationEvent.PAUSED}
            device.state = None
            federation.device_changed()
            await until(lambda: len(heard.heard) > 1)
            assert heard.heard[-1].reason.problem == "OSError('no battery service')"
            device.state = {"charging": True, "unmetered": True, "idle": True}
            federation.device_changed()
            await patient(work)
            subscription.cancel()

    asyncio.run(run())


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, {tests!r})
import fleetune
from test_federation import Listener, ANYWHERE, FederationEvent, fill

def act(event):
    if isinstance(event, FederationEvent.UPLOADING):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with fleetune.opened({model!r}, {folder!r}) as app:
        await fill(app)
        federation = await app.join({code!r})
        subscription = federation.subscribe(Listener(act))
        await federation.take_part(ANYWHERE)

asyncio.run(main())
"""


def test_an_app_that_is_killed_in_an_upload_goes_on_with_it(model, serve, tmp_path):
    large = """
            codec = "f32"
            lora_rank = 128
            lora_targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    """
    calm = serve("calm", rounds=1, training=large)
    whole = Listener()
    take_part(model, tmp_path / "one", calm.invite(), whole)
    chunks = [e for e in whole.heard if isinstance(e, FederationEvent.UPLOADING)]
    assert len(chunks) > 2

    server = serve("killed", rounds=1, training=large)
    folder = tmp_path / "two"
    script = KILLED.format(
        tests=str(Path(__file__).parent), model=str(model), folder=str(folder), code=server.invite()
    )
    # The package may be found where pytest was told to look, not installed.
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", script]
    killed = subprocess.run(command, timeout=PATIENCE, env=os.environ | paths)
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "device/outbox/offer.json").exists()

    async def run():
        async with fleetune.opened(model, folder) as app:
            federation = app.federation()
            heard = Listener()
            subscription = federation.subscribe(heard)
            await patient(federation.take_part(ANYWHERE))
            subscription.cancel()
            return heard

    heard = asyncio.run(run())
    assert FederationEvent.TRAINING not in heard.kinds(), "it was trained before the kill"
    done = [e for e in heard.heard if isinstance(e, FederationEvent.ROUND_DONE)]
    assert [e.fate for e in done] == [UpdateFate.ACCEPTED()]
    assert server.adapter() == calm.adapter()


def test_stopping_ends_at_once_and_what_was_begun_goes_on(model, serve, tmp_path):
    server = serve(rounds=1, steps=200)

    async def run():
        async with fleetune.opened(model, tmp_path / "device") as app:
            await fill(app)
            federation = await app.join(server.invite())

            def act(event):
                if isinstance(event, FederationEvent.TRAINING) and event.step == 2:
                    federation.stop()

            subscription = federation.subscribe(Listener(act))
            with pytest.raises(FederationError.Stopped):
                await patient(federation.take_part(ANYWHERE))
            subscription.cancel()
            await patient(federation.take_part(ANYWHERE))

    asyncio.run(run())
    assert server.adapter()


def test_codes_and_uses_that_are_wrong_are_told(model, serve, tmp_path):
    server, other = serve("one"), serve("two")

    async def run():
        async with fleetune.opened(model, tmp_path / "device") as app:
            with pytest.raises(JoinError.WrongCode, match="starts with ft1-"):
                await app.join("hello")
            with pytest.raises(JoinError.WrongCode, match="damaged"):
                await app.join(server.invite()[:-2] + "aa")
            federation = await app.join(server.invite())
            with pytest.raises(JoinError.OtherServer):
                await app.join(other.invite())
            with pytest.raises(FederationError.NoExamples):
                await federation.take_part(ANYWHERE)
            await fill(app)
            work = asyncio.ensure_future(federation.take_part(ANYWHERE))
            await asyncio.sleep(0)
            with pytest.raises(FederationError.AlreadyRunning):
                await federation.take_part(ANYWHERE)
            await patient(work)
            await federation.leave()
            assert app.federation() is None
            again = await app.join(other.invite())
            assert again.device() != federation.device()

    asyncio.run(run())


def test_a_key_store_that_fails_is_told_and_a_listener_that_throws_is_left_out(
    model, serve, tmp_path
):
    server = serve(rounds=1)

    class Broken(Memory):
        def store(self, key):
            raise PermissionError("the key store is locked")

    class Angry(FederationListener):
        def __init__(self):
            self.calls = 0

        def on_event(self, event):
            self.calls += 1
            raise ValueError("not now")

    async def broken():
        async with fleetune.opened(model, tmp_path / "one", keys=Broken()) as app:
            with pytest.raises(JoinError.KeyStore, match="the key store is locked"):
                await app.join(server.invite())

    asyncio.run(broken())
    angry = Angry()
    take_part(model, tmp_path / "two", server.invite(), angry)
    assert angry.calls == 1


def test_a_server_that_is_gone_is_told(model, serve, tmp_path):
    server = serve()
    code = server.invite()
    server.stop()

    async def run():
        async with fleetune.opened(model, tmp_path / "device") as app:
            joining = asyncio.ensure_future(app.join(code))
            done, _ = await asyncio.wait([joining], timeout=1)
            if done:
                with pytest.raises(JoinError.Unreachable):
                    joining.result()
                return
            # Nobody says that the port is closed: the wait can be ended.
            joining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await joining

    asyncio.run(run())
