"""What is trained on: rows of made-up text, and models with random weights.

Everything follows from seeds, is written once into a folder, and is found there by later runs.
"""

import json
import math
import pathlib
import random
import shutil
import sys

from measure import PEERS, Failed

sys.path.insert(0, str(PEERS))
from shapes import SHAPES  # noqa: E402

# Frequent words, each about a token in most vocabularies.
WORDS = """the of and to in is that it was for on are as with they be at one have this from by hot word but
what some we can out other were all there when up use your how said an each she which do their time if will
way about many then them write would like so these her long make thing see him two has look more day could go
come did number sound no most people my over know water than call first who may down side been now find any
new work part take get place made live where after back little only round man year came show every good me
give our under name very through just form sentence great think say help low line differ turn cause much mean
before move right boy old too same tell does set three want air well also play small end put home read hand
port large spell add even land here must big high such follow act why ask men change went light kind off need
house picture try us again animal point mother world near build self earth father head stand own page should
country found answer school grow study still learn plant cover food sun four between state keep eye never last
let thought city tree cross farm hard start might story saw far sea draw left late run while press close night
real life few north open seem together next white children begin got walk example ease paper group always
music those both mark often letter until mile river car feet care second book carry took science eat room
friend began idea fish mountain stop once base hear horse cut sure watch color face wood main enough""".split()
TOKENS_PER_WORD = 1.15
# Tokens of the text around a row.
TEMPLATE = 40
# Rows of instruction data sets have this many tokens in the middle, spread by a factor of e to this.
MIDDLE, SPREAD = 160, 0.6
SHARD_BYTES = 2 << 30


def text(source, tokens):
    words = max(1, round(tokens / TOKENS_PER_WORD))
    return " ".join(source.choice(WORDS) for _ in range(words))


def lengths(count, seq_len, seed):
    """Tokens of `count` rows: log-normal, cut at `seq_len`."""
    source = random.Random(seed)
    drawn = (source.lognormvariate(math.log(MIDDLE), SPREAD) for _ in range(count))
    return [round(min(max(tokens, TEMPLATE + 8), seq_len)) for tokens in drawn]


def rows(task, count, seq_len, seed):
    """Rows of a data set: instructions, or preferences."""
    source = random.Random(seed + 1)
    for tokens in lengths(count, seq_len, seed):
        own = tokens - TEMPLATE
        if task == "sft":
            yield {"instruction": text(source, own / 3), "response": text(source, own * 2 / 3)}
        else:
            prompt, answers = text(source, own / 2), [text(source, own / 2) for _ in range(2)]
            yield {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def write_rows(path, task, count, seq_len, seed):
    """Writes rows; returns the flags by which fleetune reads them."""
    if not path.exists():
        lines = (json.dumps(row) for row in rows(task, count, seq_len, seed))
        publish(path, lambda part: part.write_text("\n".join(lines) + "\n"))
    return ["--dataset", {"sft": "instruction", "dpo": "preference"}[task], "--data", path]


def publish(path, write):
    """Writes a file or folder under another name first: what has its name is whole."""
    part = path.with_name(path.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    write(part)
    part.rename(path)


def random_folder(name, work, device):
    """A Hugging Face folder with random weights in bf16, shard by shard, and a tokenizer."""
    folder = work / f"random-{name}"
    shape = SHAPES[name]
    if not folder.exists():
        check_space(work, 2 * values(shape))
        publish(folder, lambda part: write_folder(part, shape, device))
    return folder


def random_gguf(name, work, machine):
    """The same shapes as a Q4_0 GGUF file."""
    path = work / f"random-{name}-q4_0.gguf"
    if not path.exists():
        check_space(work, values(SHAPES[name]) * 5 // 8)
        script = PEERS / "random_model.py"
        publish(path, lambda part: machine.run([sys.executable, script, name, part]))
    return path


def dequantised(model, work, machine):
    """The built-in model's values in f32 for PyTorch: a fresh adapter folded in changes nothing."""
    folder = work / "builtin-f32"
    if not folder.exists():
        zero = work / "zero"
        machine.fleetune("train", "--model", model, "--max-steps", 0, "--overwrite", "--out", zero,
                         device="cpu")
        publish(folder, lambda part: machine.fleetune(
            "export", "--format", "hf", "--model", model, "--adapter", zero, "--overwrite",
            "--out", part, device="cpu"))
    return folder


def check_space(folder, need):
    free = shutil.disk_usage(folder).free
    if free < need + (1 << 30):
        raise Failed(f"{folder} has {free / 1e9:.1f} GB free, a model needs {need / 1e9:.1f}: "
                     "name another folder with --work, or fewer --sizes")


def values(shape):
    """Parameters of a model."""
    layer = sum(height * width for _, _, height, width in shape.projections()) + 2 * shape.hidden
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return embeddings + shape.layers * layer + shape.hidden


def write_folder(folder, shape, device):
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator(device).manual_seed(0)
    folder.mkdir()
    index, shard, size = {}, {}, 0

    def flush():
        nonlocal shard, size
        name = f"model-{len(set(index.values())) + 1:05}.safetensors"
        save_file(shard, str(folder / name), metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    def put(name, tensor):
        nonlocal size
        shard[name] = tensor.to(torch.bfloat16).cpu()
        size += 2 * tensor.numel()
        if size >= SHARD_BYTES:
            flush()

    def matrix(name, height, width):
        drawn = torch.randn(height, width, generator=generator, device=device)
        put(name + ".weight", drawn.mul_(width**-0.5))

    def gain(name):
        put(name + ".weight", torch.ones(shape.hidden))

    matrix("model.embed_tokens", shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        gain(prefix + "input_layernorm")
        gain(prefix + "post_attention_layernorm")
        for name, _, height, width in shape.projections():
            matrix(prefix + name, height, width)
    gain("model.norm")
    if not shape.tied:
        matrix("lm_head", shape.vocabulary, shape.hidden)
    flush()
    index_file = {"metadata": {"total_size": 2 * values(shape)}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    write_tokenizer(folder)
    if device == "cuda":
        # Whoever is measured next finds the card empty.
        torch.cuda.empty_cache()


def config(shape):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.wide,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }


def write_tokenizer(folder):
    """Byte-level BPE of a thousand tokens, learnt from the words above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    source = random.Random(0)
    tokenizer.train_from_iterator((text(source, 200) for _ in range(200)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def builtin(path):
    """The built-in model's file."""
    if path:
        found = [pathlib.Path(path)]
    else:
        found = sorted(pathlib.Path.home().glob(".cache/fleetune/models/smollm2-135m-instruct/*.gguf"))
    if not found or not found[0].is_file():
        raise Failed("the built-in model is not here: name its GGUF file with --builtin, or leave it out "
                     "of --sizes")
    return found[0]
