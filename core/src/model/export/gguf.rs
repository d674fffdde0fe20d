//! GGUF files: LoRA adapters as llama.cpp reads them, and models with an adapter folded in.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::content::{Content, Fold, Planned, Source, projection};
use super::{ExportError, FloatFormat, OnTensor, WriteError, write_tensors};
use crate::adapter::{Adapter, Target};
use crate::files::stream_atomically;
use crate::model::families::FamilySpec;
use crate::model::gguf::{DEFAULT_ALIGNMENT, GgufFile, MAGIC, number_of_format};
use crate::model::names::{Naming, Tensor};
use crate::model::{Family, LoadedModel};
use crate::weight::RowOrder;

const VERSION: u32 = 3;
/// Types of metadata values.
const FLOAT: u32 = 6;
const STRING: u32 = 8;

/// Writes the adapter as a GGUF file for llama.cpp's `--lora`.
///
/// llama.cpp scales by `lora.alpha / rank`; for rank-stabilised adapters another alpha is written
/// that gives the same scale. Where GGUF files of the family hold query and key rows interleaved, B
/// is written in that order too.
///
/// # Errors
/// When the adapter does not fit the model, a value does not fit `format`, or the file cannot be
/// written.
pub fn gguf_adapter(
    model: &LoadedModel,
    adapter: &Adapter,
    format: FloatFormat,
    path: &Path,
    on_tensor: OnTensor<'_>,
) -> Result<(), ExportError> {
    adapter.check_against(&model.config)?;
    let mut metadata = Metadata::default();
    metadata.string("general.type", "adapter");
    metadata.string("general.architecture", &architecture(model)?);
    metadata.string("adapter.type", "lora");
    let alpha = adapter.config.scale() * adapter.config.rank as f64;
    metadata.float("adapter.lora.alpha", alpha as f32);

    let config = &model.config;
    let interleaved = FamilySpec::of(config.family).is_some_and(|spec| spec.gguf_interleaves_heads);
    let mut tensors = Vec::new();
    for layer in 0..config.num_layers {
        for &target in &adapter.config.targets {
            let base = Naming::Gguf.name(Tensor::Layer(layer, target.into()));
            let rotated = matches!(target, Target::QProj | Target::KProj);
            let order = match interleaved && rotated {
                true => RowOrder::InterleavedHeads { head_dim: config.head_dim },
                false => RowOrder::Natural,
            };
            let (a, b) = target.tensor_names(layer);
            for (name, side, order) in [(a, "lora_a", RowOrder::Natural), (b, "lora_b", order)] {
                // `check_against` has found every one of them.
                let Some(entry) = adapter.parameters.get(&name) else { continue };
                let source = Source::Values(&entry.values, entry.shape[1]);
                let content = Content::Rows { source, format, order };
                let name = format!("{base}.{side}");
                tensors.push(Planned { name, shape: entry.shape.clone(), content });
            }
        }
    }
    let Metadata { entries, bytes } = metadata;
    write_file(path, (entries, &bytes), DEFAULT_ALIGNMENT, &tensors, on_tensor)
}

/// Writes the base model's GGUF file anew with the adapter folded into the matrices it adapts,
/// which are written in `format`; metadata and all other tensors are copied as they are.
///
/// # Errors
/// When the model is no GGUF file, the adapter does not fit it, a value does not fit `format`, or
/// the file cannot be written.
pub fn merged_gguf(
    model: &LoadedModel,
    adapter: &Adapter,
    format: FloatFormat,
    path: &Path,
    on_tensor: OnTensor<'_>,
) -> Result<(), ExportError> {
    adapter.check_against(&model.config)?;
    let base = gguf_file(model)?;
    let (header, mut index) = GgufFile::open(base)?;
    let mut folds = BTreeMap::new();
    for (i, layer) in model.weights.layers.iter().enumerate() {
        for &target in &adapter.config.targets {
            let name = Naming::Gguf.name(Tensor::Layer(i, target.into()));
            folds.insert(name, (projection(layer, target), Fold::of(adapter, i, target)));
        }
    }
    let names: Vec<String> = index.remaining().map(|(name, _)| name.to_owned()).collect();
    let mut tensors = Vec::with_capacity(names.len());
    for name in names {
        let shape = index.shape(&name).map_or_else(Vec::new, <[usize]>::to_vec);
        let content = match folds.get(&name) {
            Some(&(weight, fold)) => {
                let source = Source::Weight(weight, fold);
                Content::Rows { source, format, order: weight.row_order() }
            }
            None => Content::AsItIs(index.take_any(&name)?),
        };
        tensors.push(Planned { name, shape, content });
    }
    write_file(path, header.raw_metadata(), header.alignment(), &tensors, on_tensor)
}

/// The model's GGUF file.
fn gguf_file(model: &LoadedModel) -> Result<&Path, ExportError> {
    match model.files() {
        [file] if file.extension().is_none_or(|extension| extension != "safetensors") => Ok(file),
        files => Err(ExportError::NotGguf { path: files.first().cloned().unwrap_or_default() }),
    }
}

/// The architecture that llama.cpp knows the model by: what its GGUF file says, or what a converter
/// would write.
fn architecture(model: &LoadedModel) -> Result<String, ExportError> {
    if let Ok(file) = gguf_file(model) {
        let (header, _) = GgufFile::open(file)?;
        if let Some(architecture) = header.string("general.architecture")? {
            return Ok(architecture);
        }
    }
    // Converters write Mistral models as `llama`.
    let family = match model.config.family {
        Family::Mistral => Family::Llama,
        family => family,
    };
    let architectures = FamilySpec::of(family).map(|spec| spec.gguf_architectures);
    let first = architectures.and_then(<[_]>::first);
    first
        .map(|name| (*name).to_owned())
        .ok_or(ExportError::Inexpressible { format: "GGUF", what: "architecture" })
}

/// Metadata entries as a file holds them.
#[derive(Debug, Default)]
struct Metadata {
    entries: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn string(&mut self, key: &str, value: &str) {
        self.entry(key, STRING);
        put_string(&mut self.bytes, value);
    }

    fn float(&mut self, key: &str, value: f32) {
        self.entry(key, FLOAT);
        self.bytes.extend(value.to_le_bytes());
    }

    fn entry(&mut self, key: &str, value_type: u32) {
        self.entries += 1;
        put_string(&mut self.bytes, key);
        self.bytes.extend(value_type.to_le_bytes());
    }
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn write_file(
    path: &Path,
    (entries, metadata): (u64, &[u8]),
    alignment: u64,
    tensors: &[Planned<'_>],
    on_tensor: OnTensor<'_>,
) -> Result<(), ExportError> {
    // An alignment in memory is far smaller than usize; one that is not aligns nothing.
    let alignment = usize::try_from(alignment).unwrap_or(1).max(1);
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(entries.to_le_bytes());
    header.extend(metadata);
    let mut offset = 0;
    for tensor in tensors {
        put_string(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        // ggml counts dimensions from the innermost.
        for &size in tensor.shape.iter().rev() {
            header.extend((size as u64).to_le_bytes());
        }
        header.extend(number_of_format(tensor.format()).to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += tensor.byte_len().next_multiple_of(alignment);
    }
    header.resize(header.len().next_multiple_of(alignment), 0);
    stream_atomically(path, |out| {
        out.write_all(&header)?;
        write_tensors(out, tensors, alignment, on_tensor)
    })
    .map_err(|error: WriteError| error.at(path))
}
