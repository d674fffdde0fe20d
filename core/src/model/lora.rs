//! An adapter's A and B where the engine computes, and their gradients.

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::adapter::{Adapter, Parameter, ParameterSet, Target};
use crate::ops::{Ops, Transpose};

/// A and B of one projection.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// `[rank, in]`.
    pub a: Tensor,
    /// `[out, rank]`.
    pub b: Tensor,
}

/// The pairs of one layer, by target in forward order.
pub type LoraLayer = [Option<LoraPair>; Target::ALL.len()];

/// An adapter on a device.
#[derive(Debug, Clone)]
pub struct LoraTensors {
    /// The layers, first to last.
    pub layers: Vec<LoraLayer>,
    /// The factor before `B A x`.
    pub scale: f64,
}

impl LoraTensors {
    /// Copies an adapter to a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        adapter: &Adapter,
        num_layers: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let tensor = |name: &str| -> Result<Option<Tensor>> {
            let Some(parameter) = adapter.parameters.get(name) else { return Ok(None) };
            let shape = parameter.shape.as_slice();
            Tensor::from_slice(&parameter.values, shape, device)?.to_dtype(dtype).map(Some)
        };
        let layers = (0..num_layers).map(|layer| -> Result<LoraLayer> {
            let mut pairs = LoraLayer::default();
            for &target in &adapter.config.targets {
                let (a, b) = target.tensor_names(layer);
                if let (Some(a), Some(b)) = (tensor(&a)?, tensor(&b)?) {
                    pairs[target as usize] = Some(LoraPair { a, b });
                }
            }
            Ok(pairs)
        });
        Ok(Self { layers: layers.collect::<Result<_>>()?, scale: adapter.config.scale() })
    }
}

/// The gradients of an adapter's tensors as named f32 values.
pub(super) fn gradients_by_name(layers: &[LoraLayer]) -> Result<ParameterSet> {
    let mut entries = Vec::new();
    for (layer, pairs) in layers.iter().enumerate() {
        for target in Target::ALL {
            let Some(pair) = &pairs[target as usize] else { continue };
            let (a, b) = target.tensor_names(layer);
            for (name, tensor) in [(a, &pair.a), (b, &pair.b)] {
                let shape = tensor.dims().to_vec();
                let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
                entries.push(Parameter { name, shape, values });
            }
        }
    }
    Ok(ParameterSet::new(entries))
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
    /// `[rows, width]` of 0 and `1/(1 − probability)`.
    fn mask(self, layer: usize, target: Target, like: &Tensor) -> Result<Tensor> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream((layer * Target::ALL.len() + target as usize) as u64);
        let keep = 1.0 - self.probability;
        let kept = (1.0 / keep) as f32;
        let draw = |_| if random.random_bool(keep) { kept } else { 0.0 };
        let mask: Vec<f32> = (0..like.elem_count()).map(draw).collect();
        Tensor::from_vec(mask, like.shape(), like.device())?.to_dtype(like.dtype())
    }
}

/// One projection's adapter during a pass: what to multiply by, how strongly, which inputs to drop.
pub(super) struct AdaptedPass<'a> {
    pub ops: &'a dyn Ops,
    pub lora: &'a LoraPair,
    pub scale: f64,
    pub dropout: Option<Dropout>,
    pub layer: usize,
    pub target: Target,
}

impl AdaptedPass<'_> {
    /// `y + scale · (dropout(x) Aᵀ) Bᵀ`.
    pub fn forward(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (x, _) = self.dropped(x)?;
        let u = self.down(&x)?;
        self.ops.matmul((&u, Transpose::No), (&self.lora.b, Transpose::Yes), self.scale, Some(y))
    }

    /// Gradients of A and B, and `dx` plus the gradient of `x` through the adapter. With
    /// `U = dropout(x) Aᵀ` and `dU = scale · dY·B`: `dB = scale · dYᵀ·U`, `dA = dUᵀ·dropout(x)`,
    /// `dX = dU·A`, dropped where `x` was. U is cheap to compute again and is not kept.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, dx: Tensor) -> Result<(LoraPair, Tensor)> {
        let (x, mask) = self.dropped(x)?;
        let (plain, turned) = (Transpose::No, Transpose::Yes);
        let u = self.down(&x)?;
        let b = self.ops.matmul((dy, turned), (&u, plain), self.scale, None)?;
        let du = self.ops.matmul((dy, plain), (&self.lora.b, plain), self.scale, None)?;
        let a = self.ops.matmul((&du, turned), (&x, plain), 1.0, None)?;
        let through = (&du, plain);
        let dx = match mask {
            None => self.ops.matmul(through, (&self.lora.a, plain), 1.0, Some(dx))?,
            Some(mask) => {
                let masked = self.ops.matmul(through, (&self.lora.a, plain), 1.0, None)?;
                self.ops.add(dx, &(masked * mask)?)?
            }
        };
        Ok((LoraPair { a, b }, dx))
    }

    fn down(&self, x: &Tensor) -> Result<Tensor> {
        self.ops.matmul((x, Transpose::No), (&self.lora.a, Transpose::Yes), 1.0, None)
    }

    fn dropped(&self, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        match self.dropout {
            None => Ok((x.clone(), None)),
            Some(dropout) => {
                let mask = dropout.mask(self.layer, self.target, x)?;
                Ok(((x * &mask)?, Some(mask)))
            }
        }
    }
}
