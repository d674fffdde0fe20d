//! The operations of a decoder, forward and backward, and the seam where kernels replace them.
//!
//! [`Ops`] lists every operation the engine needs, with its gradient written by hand. Three
//! implementations exist: [`TensorOps`] uses ordinary candle operations and so runs on every candle
//! device and in every float type; [`HostOps`] runs on the processor in f32 and calls
//! [`crate::kernels`]; `CudaOps`, in builds for NVIDIA cards, calls kernels of ours there. Tests hold
//! them against each other and against finite differences.
//!
//! Matrices are `[tokens, features]`, contiguous; the tokens of all sequences of a batch lie end to
//! end. Frozen weights have no gradient anywhere: only what reaches an adapter's A and B, or the
//! input of a layer, is ever computed.

#[cfg(any(feature = "cuda", test))]
mod cuda;
mod frozen;
mod host;
mod tensor;

use std::ops::Range;

use candle_core::{Result, Tensor};

pub use crate::kernels::{AttentionShape, Segment};

#[cfg(any(feature = "cuda", test))]
pub(crate) use cuda::CudaOps;
pub use frozen::Frozen;
pub use host::HostOps;
pub use tensor::TensorOps;

/// Rotary angles of a batch's tokens: `cos` and `sin` are `[tokens, head_dim / 2]`.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

/// What attention keeps for its backward pass.
#[derive(Debug, Clone)]
pub struct Attended {
    /// The result `[tokens, heads · head_dim]`.
    pub output: Tensor,
    /// Natural logarithm of each softmax's denominator `[tokens, heads]`.
    pub log_sum_exp: Tensor,
}

/// What the head says of the tokens it was asked about.
#[derive(Debug, Clone)]
pub struct TargetScores {
    /// Natural log-probability per target.
    pub log_probs: Vec<f64>,
    /// Whether the target has the largest logit.
    pub correct: Vec<bool>,
    /// Gradient of each target's log-probability with respect to its own row of the input
    /// `[targets, hidden]`, where it was asked for.
    pub gradient: Option<Tensor>,
}

/// The operations of a decoder. `T` is the number of tokens of the batch.
///
/// A method with a parameter `onto` adds its result to that tensor, in place where it can, and
/// returns it; `None` starts from zero.
pub trait Ops: Send + Sync {
    /// Rows `ids` of the embedding: `[ids, hidden]`.
    fn embed(&self, table: &Frozen, ids: &[u32]) -> Result<Tensor>;

    /// `X·Wᵀ` for each weight: `[T, in]` → `[T, out]`.
    fn project(&self, x: &Tensor, weights: &[&Frozen]) -> Result<Vec<Tensor>>;

    /// The gradient of [`Ops::project`]'s input through one weight, `onto + dY·W`: `[T, out]` → `[T, in]`.
    fn project_back(&self, dy: &Tensor, w: &Frozen, onto: Option<Tensor>) -> Result<Tensor>;

    /// One factor of adapters, each on its own rows: with `X_g` the rows `groups[g]` of `x` `[T, in]`
    /// and `F_g` the matrix `g` of `factors` `[adapters, in, out]` (or `[adapters, out, in]`, read
    /// transposed), `onto_g + scale · X_g·F_g`: `[T, out]`. The groups follow each other without gaps
    /// and cover all rows.
    fn adapt(
        &self,
        x: &Tensor,
        groups: &[Range<usize>],
        factors: (&Tensor, Transpose),
        scale: f64,
        onto: Option<Tensor>,
    ) -> Result<Tensor>;

    /// The gradients of factors of [`Ops::adapt`], `scale · dY_gᵀ·X_g` over each group's rows:
    /// `[T, out]` and `[T, in]` → `[adapters, out, in]`. Summed in f32 at least.
    fn adapt_gradient(
        &self,
        dy: &Tensor,
        x: &Tensor,
        groups: &[Range<usize>],
        scale: f64,
    ) -> Result<Tensor>;

    /// Adds two tensors of one shape, or a vector `[out]` to every row of `[T, out]`.
    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor>;

    /// `y = x / √(mean(x²) + eps) · gain`, per row (Zhang & Sennrich 2019). Rows are as wide as
    /// `gain`, so `[T, heads · head_dim]` with a gain `[head_dim]` normalises per head.
    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor>;

    /// `onto + dx` of [`Ops::rms_norm`]. With `r = 1/√(mean(x²) + eps)`, `g = dy · gain` and n values
    /// in a row: `dx = r·g − x · r³/n · Σ(g·x)`.
    fn rms_norm_back(
        &self,
        x: &Tensor,
        gain: &Tensor,
        eps: f64,
        dy: &Tensor,
        onto: Option<Tensor>,
    ) -> Result<Tensor>;

    /// Rotary embedding (Su et al. 2021), halves of each head rotated against each other:
    /// `(x₁, x₂) → (x₁ cos − x₂ sin, x₂ cos + x₁ sin)`. `inverse` turns back, which is also the
    /// gradient.
    fn rotate(
        &self,
        x: Tensor,
        head_dim: usize,
        rotation: &Rotation,
        inverse: bool,
    ) -> Result<Tensor>;

    /// Causal attention within each segment: `softmax(scale · q·kᵀ)·v`. `q` is `[T, heads ·
    /// head_dim]`; `k` and `v` are `[K, kv_heads · head_dim]`, where K may exceed T by the rows of a
    /// cache that segments name as their context.
    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shape: AttentionShape,
        segments: &[Segment],
    ) -> Result<Attended>;

    /// `(dq, dk, dv)` of [`Ops::attend`]. With `p` the softmax, `dv = pᵀ·do`, `ds = p ∘ (do·vᵀ −
    /// Σ do∘o)`, `dq = scale · ds·k`, `dk = scale · dsᵀ·q`.
    #[allow(clippy::too_many_arguments)]
    fn attend_back(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        attended: &Attended,
        d_output: &Tensor,
        shape: AttentionShape,
        segments: &[Segment],
    ) -> Result<(Tensor, Tensor, Tensor)>;

    /// `silu(gate) ∘ up` (Shazeer 2020), `silu(x) = x·σ(x)`.
    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor>;

    /// [`Ops::swiglu`] of the projections of one input by two weights, which nothing else needs:
    /// `[T, in]` → `[T, out]`. The same bits as one after the other.
    fn gated(&self, x: &Tensor, gate: &Frozen, up: &Frozen) -> Result<Tensor> {
        let projected = self.project(x, &[gate, up])?;
        self.swiglu(&projected[0], &projected[1])
    }

    /// `(d_gate, d_up)` of [`Ops::swiglu`]: `d_up = dy ∘ silu(gate)`, `d_gate = dy ∘ up ∘ σ(gate)(1 +
    /// gate(1 − σ(gate)))`. In place of both inputs where it can.
    fn swiglu_back(&self, gate: Tensor, up: Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)>;

    /// Log-probabilities of the tokens `targets`, one per row of `x` `[targets, hidden]`, under
    /// `softmax(x·Wᵀ)`; all their logits exist at once. `with_gradient` also asks for `∂ log p / ∂x = W[target] − softmax·W`.
    fn score(
        &self,
        x: &Tensor,
        head: &Frozen,
        targets: &[u32],
        with_gradient: bool,
    ) -> Result<TargetScores>;
}

/// How a factor of a product is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transpose {
    /// As it lies.
    No,
    /// Rows and columns swapped.
    Yes,
}
