//! [`ServerState`] as bytes: a safetensors file of f64 tensors, `docs/formats/server-state.md`.

use std::collections::HashMap;
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use fleetune_core::adapter::{Layout, Parameter, ParameterSet};
use nalgebra::DMatrix;

use super::combine::{Factored, Module, modules};
use super::state::Memory;
use super::{Algorithm, ServerState, Variant};

/// Key of the header in the file's metadata.
const HEADER_KEY: &str = "fleetune.server_state";
const VERSION: u32 = 1;

/// What the names of the products' factors begin with.
const PRODUCT_GROUP: &str = "product";

/// One metadata entry holds the whole header: several would be written in random order, and equal
/// states must give equal bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    algorithm: Algorithm,
    variant: Variant,
    round: u64,
}

/// Why bytes are no server state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateFileError {
    /// Damaged, or not a safetensors file.
    #[error("the server state is no complete safetensors file ({0}): use the one before it")]
    Format(#[from] SafeTensorError),
    /// The header is missing, of another version or unreadable.
    #[error("the server state's header is {found}: `fleetune` writes version {VERSION}")]
    Header {
        /// What was found.
        found: String,
    },
    /// A tensor is missing, unexpected, of another shape or type, or holds what cannot be.
    #[error("the server state's tensor {name} {problem}: use the state before it")]
    Tensor {
        /// Its name in the file.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl ServerState {
    /// The state as a file; equal states give equal bytes.
    ///
    /// # Errors
    /// When names and shapes take more than the 100 MB that the format allows them.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StateFileError> {
        let header = Header {
            version: VERSION,
            algorithm: self.algorithm,
            variant: self.variant,
            round: self.round,
        };
        let header = serde_json::to_string(&header)
            .map_err(|error| StateFileError::Header { found: error.to_string() })?;
        let mut tensors = Vec::new();
        for (group, values) in self.vectors() {
            let mut start = 0;
            for (name, shape) in self.layout.iter() {
                let end = start + shape.iter().product::<usize>();
                let bytes: Vec<u8> =
                    values[start..end].iter().flat_map(|v| v.to_le_bytes()).collect();
                tensors.push((format!("{group}/{name}"), shape.to_vec(), bytes));
                start = end;
            }
        }
        for (module, Factored { b, a }) in self.modules().iter().zip(self.product.iter().flatten())
        {
            for (factor, matrix) in [("a", a), ("b", b)] {
                // nalgebra keeps columns together, files rows.
                let rows = matrix.transpose();
                let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
                let name = format!("{PRODUCT_GROUP}_{factor}/{}", module.name);
                tensors.push((name, vec![matrix.nrows(), matrix.ncols()], bytes));
            }
        }
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((name.as_str(), TensorView::new(Dtype::F64, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, SafeTensorError>>()?;
        let metadata = HashMap::from([(HEADER_KEY.to_owned(), header)]);
        Ok(safetensors::serialize(views, Some(metadata))?)
    }

    /// Reads what [`ServerState::to_bytes`] wrote, bit for bit.
    ///
    /// # Errors
    /// When the bytes are damaged, of another version or do not hold what the algorithm remembers.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateFileError> {
        let header = read_header(bytes)?;
        let file = SafeTensors::deserialize(bytes)?;
        let memory = Memory::of(header.algorithm);
        let layout = layout_of(&file)?;
        let mut read = 0;
        let mut group = |group: &str, wanted: bool| -> Result<Option<Vec<f64>>, StateFileError> {
            if !wanted {
                return Ok(None);
            }
            read += layout.iter().count();
            read_group(&file, group, &layout).map(Some)
        };
        let global = group("global", true)?.unwrap_or_default();
        let momentum = group("m", memory.momentum)?;
        let second_moment = group("v", memory.second_moment)?;
        let control = group("c", memory.control)?;
        let product = read_product(&file, &layout)?;
        read += product.iter().flatten().count() * 2;
        if read != file.len() {
            let name = format!("beside the {read} that {} has", header.algorithm);
            return Err(StateFileError::Tensor { name, problem: "is unexpected" });
        }
        if second_moment.iter().flatten().any(|&v| v < 0.0) {
            let problem = "is negative somewhere";
            return Err(StateFileError::Tensor { name: "v".into(), problem });
        }
        let Header { algorithm, variant, round, .. } = header;
        let layout = Arc::new(layout);
        Ok(Self {
            algorithm,
            variant,
            round,
            layout,
            global,
            momentum,
            second_moment,
            control,
            product,
        })
    }

    /// The adapted modules; none where the layout has other tensors, whose products nobody combines.
    fn modules(&self) -> Vec<Module> {
        modules(&self.layout).unwrap_or_default()
    }
}

fn read_header(bytes: &[u8]) -> Result<Header, StateFileError> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let text = metadata.metadata().as_ref().and_then(|entries| entries.get(HEADER_KEY));
    let text = text.ok_or_else(|| StateFileError::Header { found: "missing".into() })?;
    let header: Header = serde_json::from_str(text)
        .map_err(|error| StateFileError::Header { found: error.to_string() })?;
    if header.version != VERSION {
        return Err(StateFileError::Header { found: format!("of version {}", header.version) });
    }
    Ok(header)
}

/// Names and shapes of the global weights.
fn layout_of(file: &SafeTensors<'_>) -> Result<Layout, StateFileError> {
    let mut entries = Vec::new();
    for (full_name, view) in file.iter() {
        if let Some(name) = full_name.strip_prefix("global/") {
            // The values are there too, so that memory is taken only for what the file holds.
            let values = vec![0.0; view.data().len() / size_of::<f64>()];
            if view.dtype() != Dtype::F64 {
                let problem = "is not in f64";
                return Err(StateFileError::Tensor { name: full_name.into(), problem });
            }
            entries.push(Parameter { name: name.into(), shape: view.shape().to_vec(), values });
        }
    }
    Ok(ParameterSet::new(entries).layout())
}

fn read_group(
    file: &SafeTensors<'_>,
    group: &str,
    layout: &Layout,
) -> Result<Vec<f64>, StateFileError> {
    let mut values = Vec::new();
    for (name, shape) in layout.iter() {
        let name = format!("{group}/{name}");
        let wrong = |problem| StateFileError::Tensor { name: name.clone(), problem };
        let view = file.tensor(&name).map_err(|_| wrong("is missing"))?;
        if view.dtype() != Dtype::F64 || view.shape() != shape {
            return Err(wrong("has another shape or is not in f64"));
        }
        let chunks = view.data().as_chunks::<8>().0.iter();
        values.extend(chunks.map(|&bytes| f64::from_le_bytes(bytes)));
    }
    if let Some(name) = values.iter().any(|v| !v.is_finite()).then(|| group.to_owned()) {
        return Err(StateFileError::Tensor { name, problem: "holds values that are not finite" });
    }
    Ok(values)
}

/// The products, where the file holds any: then those of all modules.
fn read_product(
    file: &SafeTensors<'_>,
    layout: &Layout,
) -> Result<Option<Vec<Factored>>, StateFileError> {
    if !file.names().iter().any(|name| name.starts_with(PRODUCT_GROUP)) {
        return Ok(None);
    }
    let modules = modules(layout).map_err(|_| StateFileError::Tensor {
        name: PRODUCT_GROUP.into(),
        problem: "is there, but the global weights are no pairs of factors",
    })?;
    let read = |factor: &str, module: &Module| {
        let name = format!("{PRODUCT_GROUP}_{factor}/{}", module.name);
        let wrong = |problem| StateFileError::Tensor { name: name.clone(), problem };
        let view = file.tensor(&name).map_err(|_| wrong("is missing"))?;
        let &[rows, columns] = view.shape() else { return Err(wrong("is no matrix")) };
        if view.dtype() != Dtype::F64 {
            return Err(wrong("is not in f64"));
        }
        let values = view.data().as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes));
        let matrix = DMatrix::from_row_iterator(rows, columns, values);
        match matrix.iter().all(|v| v.is_finite()) {
            true => Ok(matrix),
            false => Err(wrong("holds values that are not finite")),
        }
    };
    let factored = |module: &Module| {
        let (a, b) = (read("a", module)?, read("b", module)?);
        let fits = a.ncols() == module.columns && b.nrows() == module.rows;
        if fits && a.nrows() == b.ncols() {
            return Ok(Factored { b, a });
        }
        let (name, problem) = (module.name.clone(), "has products of another size");
        Err(StateFileError::Tensor { name, problem })
    };
    modules.iter().map(factored).collect::<Result<_, _>>().map(Some)
}
