//! The frozen tensors of a decoder, by their place in it.

use crate::weight::FrozenWeight;

/// All frozen tensors of a decoder. Matrices stay in their file format; the short vectors are f32.
#[derive(Debug, Clone)]
pub struct DecoderWeights {
    /// Token embedding `[vocab, hidden]`.
    pub embedding: FrozenWeight,
    /// The layers, first to last.
    pub layers: Vec<LayerWeights>,
    /// Gain of the last RMSNorm `[hidden]`.
    pub final_norm: Vec<f32>,
    /// Output head `[vocab, hidden]`; a clone of `embedding` where the model ties them.
    pub head: FrozenWeight,
}

/// The frozen tensors of one layer.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// Gain of the RMSNorm before attention `[hidden]`.
    pub attention_norm: Vec<f32>,
    /// Query projection `[heads · head_dim, hidden]`.
    pub q_proj: FrozenWeight,
    /// Key projection `[kv_heads · head_dim, hidden]`.
    pub k_proj: FrozenWeight,
    /// Value projection `[kv_heads · head_dim, hidden]`.
    pub v_proj: FrozenWeight,
    /// Output projection `[hidden, heads · head_dim]`.
    pub o_proj: FrozenWeight,
    /// Bias of the query projection, where the family has one.
    pub q_bias: Option<Vec<f32>>,
    /// Bias of the key projection.
    pub k_bias: Option<Vec<f32>>,
    /// Bias of the value projection.
    pub v_bias: Option<Vec<f32>>,
    /// Gain of the per-head RMSNorm of queries `[head_dim]` (Qwen3).
    pub q_norm: Option<Vec<f32>>,
    /// Gain of the per-head RMSNorm of keys `[head_dim]` (Qwen3).
    pub k_norm: Option<Vec<f32>>,
    /// Gain of the RMSNorm before the feed-forward part `[hidden]`.
    pub mlp_norm: Vec<f32>,
    /// Gate projection `[intermediate, hidden]`.
    pub gate_proj: FrozenWeight,
    /// Up projection `[intermediate, hidden]`.
    pub up_proj: FrozenWeight,
    /// Down projection `[hidden, intermediate]`.
    pub down_proj: FrozenWeight,
}
