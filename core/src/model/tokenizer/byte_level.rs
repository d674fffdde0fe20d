//! Byte-level BPE (GPT-2's kind) out of a GGUF file.
//!
//! A GGUF file has vocabulary and merges, but of the rule that first cuts a text into words only a
//! name (`tokenizer.ggml.pre`). [`RULES`] says what the names mean, as the models' own
//! `tokenizer.json` files do.

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{PreTokenizerWrapper, Tokenizer};

use super::gguf::{self, GgufVocabulary};
use crate::model::error::ModelError;
use crate::model::gguf::GgufFile;

const PRE_KEY: &str = "tokenizer.ggml.pre";
const MERGES_KEY: &str = "tokenizer.ggml.merges";

/// How a text is cut into words before its bytes are merged.
enum Words {
    /// GPT-2's expression.
    Gpt2,
    /// Each numeric character alone, then GPT-2's expression.
    SingleDigitsThenGpt2,
    /// An expression of its own.
    Expression(&'static str),
}

/// What a name of a rule stands for.
struct Rule {
    names: &'static [&'static str],
    words: Words,
    /// Unicode composition (NFC) before everything else.
    compose: bool,
    /// A word that is a token as a whole is not merged from its bytes.
    ignore_merges: bool,
    /// Whether models with this rule expect a begin token where the file does not say.
    add_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

static RULES: &[Rule] = &[
    Rule {
        names: &["gpt-2", "gpt2", "default", "mpt", "olmo", "jais"],
        words: Words::Gpt2,
        compose: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["smollm", "starcoder", "refact", "codeshell", "command-r", "minerva-7b"],
        words: Words::SingleDigitsThenGpt2,
        compose: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        words: Words::Expression(LLAMA3),
        compose: false,
        ignore_merges: true,
        add_bos: true,
    },
    Rule {
        names: &["smaug-bpe", "dbrx"],
        words: Words::Expression(LLAMA3),
        compose: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["qwen2", "deepseek-r1-qwen"],
        words: Words::Expression(QWEN2),
        compose: true,
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["stablelm2"],
        words: Words::Expression(QWEN2),
        compose: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["tekken"],
        words: Words::Expression(TEKKEN),
        compose: false,
        ignore_merges: true,
        add_bos: true,
    },
];

/// A tokenizer without its special tokens.
pub(super) struct ByteLevelTokenizer {
    pub tokenizer: Tokenizer,
    pub description: String,
    pub add_bos_by_default: bool,
}

/// Builds the tokenizer that the metadata describe.
pub(super) fn build(
    header: &GgufFile,
    vocabulary: &GgufVocabulary,
) -> Result<ByteLevelTokenizer, ModelError> {
    let path = header.path();
    let name = header.string(PRE_KEY)?;
    let wanted = name.as_deref().unwrap_or("default");
    let Some(rule) = RULES.iter().find(|rule| rule.names.contains(&wanted)) else {
        let known: Vec<_> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
        return Err(ModelError::unsupported(
            path,
            format!(
                "the pre-tokenizer \"{wanted}\" ({PRE_KEY}; known are {}; a Hugging Face folder \
                 with a tokenizer.json needs none)",
                known.join(", ")
            ),
        ));
    };
    let lines = header
        .strings(MERGES_KEY)?
        .ok_or_else(|| ModelError::field(path, MERGES_KEY, "is missing"))?;
    let mut merges = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let pair = line.split_once(' ').filter(|(left, right)| {
            let known = |token: &str| vocabulary.ids.contains_key(token);
            known(left) && known(right) && known(&format!("{left}{right}"))
        });
        let Some((left, right)) = pair else {
            let problem = format!("entry {number} (\"{line}\") is no pair of two known tokens");
            return Err(ModelError::field(path, MERGES_KEY, problem));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids.clone(), merges)
        .ignore_merges(rule.ignore_merges)
        .build()
        .map_err(|error| gguf::refused(path, &error))?;
    let mut tokenizer = Tokenizer::new(model);
    if rule.compose {
        tokenizer.with_normalizer(Some(NFC)).map_err(|error| gguf::refused(path, &error))?;
    }
    let words = rule.words.pre_tokenizer().map_err(|error| gguf::refused(path, &error))?;
    tokenizer.with_pre_tokenizer(Some(words));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let description = match &name {
        Some(name) if name != "default" => format!("byte-level BPE, pre-tokenizer {name}"),
        _ => "byte-level BPE; the file names no pre-tokenizer, GPT-2's is assumed".to_owned(),
    };
    Ok(ByteLevelTokenizer { tokenizer, description, add_bos_by_default: rule.add_bos })
}

impl Words {
    fn pre_tokenizer(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let gpt2 = ByteLevel::new(false, true, true);
        let bytes_only = ByteLevel::new(false, true, false);
        Ok(match self {
            Words::Gpt2 => gpt2.into(),
            Words::SingleDigitsThenGpt2 => {
                Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into()
            }
            Words::Expression(expression) => {
                let pattern = SplitPattern::Regex((*expression).to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
                Sequence::new(vec![split.into(), bytes_only.into()]).into()
            }
        })
    }
}
