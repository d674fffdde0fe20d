//! Adapters' A and B where the engine computes, and their gradients.
//!
//! Several adapters of one shape may share a pass: their matrices are stacked, and each meets its own
//! rows of the batch ([`super::PackedBatch::join`]).

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::adapter::{Adapter, Parameter, ParameterSet, Target};
use crate::ops::{Ops, Transpose};

/// A and B of one projection, of one adapter or several.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// `[adapters, rank, in]`.
    pub a: Tensor,
    /// `[adapters, out, rank]`.
    pub b: Tensor,
}

/// The pairs of one layer, by target in forward order.
pub type LoraLayer = [Option<LoraPair>; Target::ALL.len()];

/// Adapters of one shape on a device.
#[derive(Debug, Clone)]
pub struct LoraTensors {
    /// The layers, first to last.
    pub layers: Vec<LoraLayer>,
    /// The factor before `B A x`.
    pub scale: f64,
    /// How many adapters there are.
    pub adapters: usize,
}

impl LoraTensors {
    /// Copies adapters to a device.
    ///
    /// # Errors
    /// When their shapes or strengths differ, or the device has no room.
    pub fn new(
        adapters: &[&Adapter],
        num_layers: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let Some((first, others)) = adapters.split_first() else {
            candle_core::bail!("a pass with adapters needs at least one")
        };
        let alike = |other: &&&Adapter| {
            other.config.scale() == first.config.scale()
                && other.parameters.check_layout(&first.parameters).is_ok()
        };
        if !others.iter().all(|other| alike(&other)) {
            candle_core::bail!("adapters of different shapes or strengths cannot share a pass")
        }
        // One copy to the device for all tensors.
        let mut values = Vec::new();
        let mut stack = |name: &str| {
            let shape = &first.parameters.get(name)?.shape;
            values.resize(values.len().next_multiple_of(ALIGNMENT), 0.0);
            let start = values.len();
            for adapter in adapters {
                values.extend_from_slice(&adapter.parameters.get(name)?.values);
            }
            Some(Place { start, shape: [&[adapters.len()], shape.as_slice()].concat() })
        };
        let mut places = Vec::new();
        for layer in 0..num_layers {
            for &target in &first.config.targets {
                let (a, b) = target.tensor_names(layer);
                if let (Some(a), Some(b)) = (stack(&a), stack(&b)) {
                    places.push((layer, target, a, b));
                }
            }
        }
        let len = values.len();
        let all = Tensor::from_vec(values, len, device)?.to_dtype(dtype)?;
        let mut layers = vec![LoraLayer::default(); num_layers];
        for (layer, target, a, b) in places {
            layers[layer][target as usize] = Some(LoraPair { a: a.of(&all)?, b: b.of(&all)? });
        }
        Ok(Self { layers, scale: first.config.scale(), adapters: adapters.len() })
    }
}

/// Tensors start at multiples of so many values, which suits kernels that read several at once.
const ALIGNMENT: usize = 64;

/// Where a tensor lies among all values.
struct Place {
    start: usize,
    shape: Vec<usize>,
}

impl Place {
    fn of(self, all: &Tensor) -> Result<Tensor> {
        all.narrow(0, self.start, self.shape.iter().product())?.reshape(self.shape)
    }
}

/// The values of tensors of one device, in f32; from a device of its own memory in one copy.
fn values_of(tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>> {
    let flat = tensors.iter().map(|tensor| tensor.flatten_all()?.to_dtype(DType::F32));
    let flat = flat.collect::<Result<Vec<_>>>()?;
    if flat.iter().all(|tensor| tensor.device().is_cpu()) {
        return flat.iter().map(Tensor::to_vec1).collect();
    }
    let all: Vec<f32> = Tensor::cat(&flat, 0)?.to_vec1()?;
    let mut rest = all.as_slice();
    let parts = flat.iter().map(|tensor| {
        let (part, others) = rest.split_at(tensor.elem_count());
        rest = others;
        part.to_vec()
    });
    Ok(parts.collect())
}

/// The gradients of each adapter's tensors as named f32 values.
pub(super) fn gradients_by_name(
    layers: &[LoraLayer],
    adapters: usize,
) -> Result<Vec<ParameterSet>> {
    let mut named = Vec::new();
    for (layer, pairs) in layers.iter().enumerate() {
        for target in Target::ALL {
            let Some(pair) = &pairs[target as usize] else { continue };
            let (a, b) = target.tensor_names(layer);
            named.extend([(a, &pair.a), (b, &pair.b)]);
        }
    }
    let tensors: Vec<&Tensor> = named.iter().map(|(_, tensor)| *tensor).collect();
    let mut sets = vec![Vec::new(); adapters];
    for ((name, tensor), all) in named.iter().zip(values_of(&tensors)?) {
        let shape = &tensor.dims()[1..];
        let each = all.chunks_exact(shape.iter().product::<usize>().max(1));
        for (entries, values) in sets.iter_mut().zip(each) {
            let (name, shape) = (name.clone(), shape.to_vec());
            entries.push(Parameter { name, shape, values: values.to_vec() });
        }
    }
    Ok(sets.into_iter().map(ParameterSet::new).collect())
}

/// Dropout of the adapter's inputs, by a mask that a seed, a layer and a target determine, so that
/// the backward pass draws the same one again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of dropping a value.
    pub probability: f64,
    /// Seed of this pass; another for every step.
    pub seed: u64,
}

impl Dropout {
    /// `rows · width` values, 0 or `1/(1 − probability)`.
    fn mask(self, layer: usize, target: Target, values: usize) -> impl Iterator<Item = f32> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream((layer * Target::ALL.len() + target as usize) as u64);
        let keep = 1.0 - self.probability;
        let kept = (1.0 / keep) as f32;
        (0..values).map(move |_| if random.random_bool(keep) { kept } else { 0.0 })
    }
}

/// One projection's adapters during a pass: what to multiply by, which rows each has, how strongly,
/// which inputs to drop.
pub(super) struct AdaptedPass<'a> {
    pub ops: &'a dyn Ops,
    pub lora: &'a LoraPair,
    /// Rows of each adapter.
    pub rows: &'a [Range<usize>],
    pub scale: f64,
    /// One for each adapter, or none.
    pub dropout: &'a [Dropout],
    pub layer: usize,
    pub target: Target,
}

impl AdaptedPass<'_> {
    /// `y + scale · (dropout(x) Aᵀ) Bᵀ`.
    pub fn forward(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (x, _) = self.dropped(x)?;
        let u = self.down(&x)?;
        self.ops.adapt(&u, self.rows, (&self.lora.b, Transpose::Yes), self.scale, Some(y))
    }

    /// Gradients of A and B, and `dx` plus the gradient of `x` through the adapter. With
    /// `U = dropout(x) Aᵀ` and `dU = scale · dY·B`: `dB = scale · dYᵀ·U`, `dA = dUᵀ·dropout(x)`,
    /// `dX = dU·A`, dropped where `x` was. U is cheap to compute again and is not kept.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, dx: Tensor) -> Result<(LoraPair, Tensor)> {
        let (x, mask) = self.dropped(x)?;
        let (ops, rows, plain) = (self.ops, self.rows, Transpose::No);
        let u = self.down(&x)?;
        let b = ops.adapt_gradient(dy, &u, rows, self.scale)?;
        let du = ops.adapt(dy, rows, (&self.lora.b, plain), self.scale, None)?;
        let a = ops.adapt_gradient(&du, &x, rows, 1.0)?;
        let through = (&self.lora.a, plain);
        let dx = match mask {
            None => ops.adapt(&du, rows, through, 1.0, Some(dx))?,
            Some(mask) => {
                let masked = ops.adapt(&du, rows, through, 1.0, None)?;
                ops.add(dx, &(masked * mask)?)?
            }
        };
        Ok((LoraPair { a, b }, dx))
    }

    fn down(&self, x: &Tensor) -> Result<Tensor> {
        self.ops.adapt(x, self.rows, (&self.lora.a, Transpose::Yes), 1.0, None)
    }

    fn dropped(&self, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        if self.dropout.is_empty() {
            return Ok((x.clone(), None));
        }
        let (rows, width) = x.dims2()?;
        let masks = self.rows.iter().zip(self.dropout);
        let masks = masks
            .flat_map(|(rows, dropout)| dropout.mask(self.layer, self.target, rows.len() * width));
        let mask = Tensor::from_vec(masks.collect::<Vec<f32>>(), (rows, width), x.device())?;
        let mask = mask.to_dtype(x.dtype())?;
        Ok(((x * &mask)?, Some(mask)))
    }
}
