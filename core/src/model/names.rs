//! What the two file formats call the tensors of a decoder.

use crate::adapter::Target;

/// A tensor of a decoder, whatever its file calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tensor {
    Embedding,
    FinalNorm,
    Head,
    Layer(usize, LayerTensor),
}

/// A tensor of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerTensor {
    AttentionNorm,
    QProj,
    KProj,
    VProj,
    OProj,
    QBias,
    KBias,
    VBias,
    QNorm,
    KNorm,
    MlpNorm,
    GateProj,
    UpProj,
    DownProj,
}

impl From<Target> for LayerTensor {
    fn from(target: Target) -> Self {
        match target {
            Target::QProj => LayerTensor::QProj,
            Target::KProj => LayerTensor::KProj,
            Target::VProj => LayerTensor::VProj,
            Target::OProj => LayerTensor::OProj,
            Target::GateProj => LayerTensor::GateProj,
            Target::UpProj => LayerTensor::UpProj,
            Target::DownProj => LayerTensor::DownProj,
        }
    }
}

/// Whose names a file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    HuggingFace,
    Gguf,
}

impl Naming {
    /// The name of `tensor` in files of this kind.
    pub fn name(self, tensor: Tensor) -> String {
        match (self, tensor) {
            (Naming::HuggingFace, Tensor::Embedding) => "model.embed_tokens.weight".to_owned(),
            (Naming::HuggingFace, Tensor::FinalNorm) => "model.norm.weight".to_owned(),
            (Naming::HuggingFace, Tensor::Head) => "lm_head.weight".to_owned(),
            (Naming::HuggingFace, Tensor::Layer(layer, tensor)) => {
                format!("model.layers.{layer}.{}", hugging_face_layer(tensor))
            }
            (Naming::Gguf, Tensor::Embedding) => "token_embd.weight".to_owned(),
            (Naming::Gguf, Tensor::FinalNorm) => "output_norm.weight".to_owned(),
            (Naming::Gguf, Tensor::Head) => "output.weight".to_owned(),
            (Naming::Gguf, Tensor::Layer(layer, tensor)) => {
                format!("blk.{layer}.{}", gguf_layer(tensor))
            }
        }
    }

    /// Whether a tensor only repeats what the configuration says: old exporters stored the rotary
    /// frequencies with every layer.
    pub fn is_derived(self, name: &str) -> bool {
        match self {
            Naming::HuggingFace => name.ends_with("rotary_emb.inv_freq"),
            Naming::Gguf => name.ends_with(".attn_rot_embd"),
        }
    }
}

fn hugging_face_layer(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::AttentionNorm => "input_layernorm.weight",
        LayerTensor::QProj => "self_attn.q_proj.weight",
        LayerTensor::KProj => "self_attn.k_proj.weight",
        LayerTensor::VProj => "self_attn.v_proj.weight",
        LayerTensor::OProj => "self_attn.o_proj.weight",
        LayerTensor::QBias => "self_attn.q_proj.bias",
        LayerTensor::KBias => "self_attn.k_proj.bias",
        LayerTensor::VBias => "self_attn.v_proj.bias",
        LayerTensor::QNorm => "self_attn.q_norm.weight",
        LayerTensor::KNorm => "self_attn.k_norm.weight",
        LayerTensor::MlpNorm => "post_attention_layernorm.weight",
        LayerTensor::GateProj => "mlp.gate_proj.weight",
        LayerTensor::UpProj => "mlp.up_proj.weight",
        LayerTensor::DownProj => "mlp.down_proj.weight",
    }
}

fn gguf_layer(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::AttentionNorm => "attn_norm.weight",
        LayerTensor::QProj => "attn_q.weight",
        LayerTensor::KProj => "attn_k.weight",
        LayerTensor::VProj => "attn_v.weight",
        LayerTensor::OProj => "attn_output.weight",
        LayerTensor::QBias => "attn_q.bias",
        LayerTensor::KBias => "attn_k.bias",
        LayerTensor::VBias => "attn_v.bias",
        LayerTensor::QNorm => "attn_q_norm.weight",
        LayerTensor::KNorm => "attn_k_norm.weight",
        LayerTensor::MlpNorm => "ffn_norm.weight",
        LayerTensor::GateProj => "ffn_gate.weight",
        LayerTensor::UpProj => "ffn_up.weight",
        LayerTensor::DownProj => "ffn_down.weight",
    }
}
