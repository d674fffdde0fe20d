"""A device by itself: examples, training, writing, and what happens when it is misused."""

import asyncio
import time

import fleetune
import pytest
from fleetune import (
    AdapterChoice,
    Example,
    ExamplesError,
    GenerateError,
    GenerateOptions,
    OpenError,
    TokenListener,
    TrainError,
    TrainListener,
    TrainOptions,
)

EXAMPLES = [Example(instruction=f"Say {i}.", response=f"It is {i}.") for i in range(6)]


def with_app(model, folder, work, **options):
    async def run():
        async with fleetune.opened(model, folder, **options) as app:
            return await work(app)

    return asyncio.run(run())


async def fill(app):
    for example in EXAMPLES:
        await app.examples.add(example)


def adapter_bytes(folder, kind="local"):
    return (folder / "adapters" / kind / "adapter_model.safetensors").read_bytes()


def test_text_comes_in_pieces_that_make_the_whole(model, tmp_path):
    async def work(app):
        pieces = [piece async for piece in app.stream("Hello", max_tokens=20)]
        whole = await app.generate("Hello", max_tokens=20)
        assert "".join(pieces) == whole.text
        assert whole.tokens <= 20
        other = await app.generate("Hello", max_tokens=20, temperature=1.0, seed=3)
        assert other.text != whole.text

    with_app(model, tmp_path, work)


def test_examples_stay_until_they_are_erased(model, tmp_path):
    async def add(app):
        await fill(app)
        assert await app.examples.count() == 6

    async def erase(app):
        stored = await app.examples.list()
        assert [s.example for s in stored] == EXAMPLES
        assert await app.examples.remove(stored[0].id)
        assert not await app.examples.remove(stored[0].id)
        await app.examples.erase_all()
        assert await app.examples.count() == 0
        return [s.example.response for s in stored]

    with_app(model, tmp_path, add)
    words = with_app(model, tmp_path, erase)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(word.encode() in file for word in words for file in files)


def test_examples_are_bounded_in_size_and_refused_when_empty(model, tmp_path):
    async def work(app):
        for i in range(20):
            await app.examples.add(Example(instruction="Say it.", response="x" * 40))
        assert await app.examples.bytes() <= 400
        with pytest.raises(ExamplesError.TooLarge):
            await app.examples.add(Example(instruction="Say it.", response="x" * 400))
        with pytest.raises(ExamplesError.Empty, match="response is empty"):
            await app.examples.add(Example(instruction="Say it.", response=" "))

    with_app(model, tmp_path, work, max_example_bytes=400)


def test_training_learns_the_examples_and_the_adapter_writes(model, tmp_path):
    async def work(app):
        with pytest.raises(TrainError.NoExamples, match="no examples yet"):
            await app.train()
        with pytest.raises(GenerateError.NoAdapter):
            await app.generate("Hello", adapter=AdapterChoice.LOCAL)
        await fill(app)
        steps = []
        report = await app.train(steps.append, steps=12, learning_rate=2e-2)
        assert [step.step for step in steps] == list(range(1, 13))
        assert report.last_loss < report.first_loss == steps[0].loss
        plain = await app.generate("Say 3.", adapter=AdapterChoice.BASE, max_tokens=16)
        tuned = await app.generate("Say 3.", max_tokens=16)
        assert tuned.text != plain.text
        app.fleetune.erase_adapters()
        assert (await app.generate("Say 3.", max_tokens=16)).text == plain.text

    with_app(model, tmp_path, work)


def test_a_training_that_pauses_ends_with_the_same_adapter(model, tmp_path):
    async def undisturbed(app):
        await fill(app)
        await app.train(steps=8)

    async def paused(app):
        await fill(app)
        loop, after_two = asyncio.get_running_loop(), asyncio.Event()

        def on_step(step):
            if step.step == 2:
                app.fleetune.pause()
                loop.call_soon_threadsafe(after_two.set)

        training = asyncio.ensure_future(app.train(on_step, steps=8))
        await after_two.wait()
        # However long one waits, it does not go on.
        done, _ = await asyncio.wait([training], timeout=0.3)
        assert not done
        app.fleetune.resume()
        await training

    with_app(model, tmp_path / "one", undisturbed)
    with_app(model, tmp_path / "two", paused)
    assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "two")


def test_cancelling_ends_a_step_at_once_and_leaves_no_trace(model, tmp_path):
    async def work(app):
        for _ in range(8):
            await app.examples.add(Example(instruction="Say it.", response="word " * 200))
        seconds = []
        for _ in range(3):
            training = asyncio.ensure_future(app.train(steps=100000, batch_size=8))
            await asyncio.sleep(0.5)
            start = time.monotonic()
            app.fleetune.cancel()
            with pytest.raises(TrainError.Cancelled):
                await training
            seconds.append(time.monotonic() - start)
        # Tenths of a second on a machine that does nothing else; hours without the cancelling.
        assert min(seconds) < 10, seconds
        training = asyncio.ensure_future(app.train(steps=100000))
        await asyncio.sleep(0.2)
        training.cancel()
        with pytest.raises(asyncio.CancelledError):
            await training
        assert not (tmp_path / "adapters").exists()

    with_app(model, tmp_path, work)


def test_wrong_files_are_told(model, tmp_path):
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF" + b"\xff" * 100)

    async def never(app):
        raise AssertionError("opened")

    for path in (wrong, tmp_path / "nowhere.gguf"):
        with pytest.raises(OpenError.Model, match=path.name):
            with_app(path, tmp_path / "app", never)
    (tmp_path / "app" / "examples.db").write_bytes(b"no database at all, but long " * 40)
    with pytest.raises(OpenError.Storage, match="no store of examples"):
        with_app(model, tmp_path / "app", never)


def test_two_instances_on_one_folder_are_refused_until_the_first_is_closed(model, tmp_path):
    async def work(app):
        with pytest.raises(OpenError.InUse, match="one per app"):
            async with fleetune.opened(model, tmp_path):
                pass

    with_app(model, tmp_path, work)
    with_app(model, tmp_path, fill)


def test_what_was_closed_refuses_everything(model, tmp_path):
    async def work(app):
        app.close()
        app.close()
        with pytest.raises(ExamplesError.Closed, match="open it again"):
            await app.examples.count()
        with pytest.raises(GenerateError.Closed):
            await app.generate("Hello")
        with pytest.raises(TrainError.Closed):
            await app.train()

    with_app(model, tmp_path, work)


def test_closing_ends_what_runs(model, tmp_path):
    async def work(app):
        await fill(app)
        training = asyncio.ensure_future(app.train(steps=100000))
        await asyncio.sleep(0.2)
        await asyncio.get_running_loop().run_in_executor(None, app.close)
        with pytest.raises(TrainError.Cancelled):
            await training

    with_app(model, tmp_path, work)


def test_callbacks_that_throw_end_the_work_with_an_error(model, tmp_path):
    class Angry(TokenListener, TrainListener):
        def on_text(self, piece):
            raise ValueError("no more words")

        def on_step(self, step):
            raise ValueError("no more steps")

    async def work(app):
        await fill(app)
        with pytest.raises(GenerateError.Listener, match="no more words"):
            await app.fleetune.generate("Hello", GenerateOptions(), Angry())
        with pytest.raises(TrainError.Listener, match="no more steps"):
            await app.fleetune.train(TrainOptions(), Angry())
        assert (await app.generate("Hello", max_tokens=3)).tokens <= 3

    with_app(model, tmp_path, work)


def test_options_out_of_range_are_told(model, tmp_path):
    async def work(app):
        await fill(app)
        for options in ({"steps": 0}, {"learning_rate": -1.0}, {"rank": 0}):
            with pytest.raises(TrainError.Options):
                await app.train(**options)
        with pytest.raises(GenerateError.Prompt, match="empty"):
            await app.generate("  ")
        with pytest.raises(GenerateError.Prompt, match="shorten it"):
            await app.generate("x" * 5000)

    with_app(model, tmp_path, work)


def test_memory_stays_flat_over_two_hundred_lives(model, tmp_path):
    async def life(app):
        await app.examples.add(EXAMPLES[0])
        await app.train(steps=1, batch_size=1)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for _ in range(50):
        with_app(model, tmp_path, life)
    before = resident()
    for _ in range(150):
        with_app(model, tmp_path, life)
    grown = resident() - before
    # An instance that stayed would hold its model's map and tokenizer: above 100 KiB each.
    assert grown < 8 << 20, f"{grown} bytes more after 150 lives"
