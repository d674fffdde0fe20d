//! The hyperparameters of a decoder.

/// A family of decoder models; what differs between them is written in their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2 and 3, SmolLM2.
    Llama,
    /// Mistral: Llama with a sliding attention window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on the query, key and value projections.
    Qwen2,
    /// Qwen3: RMSNorm of queries and keys, per head.
    Qwen3,
}

impl Family {
    /// The family's name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Qwen2 => "Qwen2",
            Family::Qwen3 => "Qwen3",
        }
    }
}

/// How rotary frequencies are stretched for contexts longer than the model was first trained on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's rule: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the first training, in tokens.
        original_context: usize,
    },
    /// Divisors per frequency, as GGUF files store them (`rope_freqs.weight`), one per pair.
    PerFrequency(Vec<f32>),
}

/// Shape and constants of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Tokens in the vocabulary (rows of the embedding).
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Longest context the model was trained for, in tokens.
    pub max_context: usize,
    /// A token attends to itself and at most `sliding_window - 1` tokens before it.
    pub sliding_window: Option<usize>,
    /// First layer the sliding window applies to.
    pub sliding_window_from_layer: usize,
    /// Whether the output head shares the embedding's matrix.
    pub tie_word_embeddings: bool,
}

/// No dimension of a decoder is near this; a larger one is an error in the file. Products of two
/// dimensions therefore fit in 48 bits.
const LARGEST_DIMENSION: usize = 1 << 24;

impl ModelConfig {
    /// Checks that the numbers describe a decoder: no size zero or absurdly large, whole groups of
    /// heads, an even head width, positive finite constants.
    ///
    /// # Errors
    /// The field that is wrong, by its name in `config.json`, and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_layers),
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
        ];
        for (field, size) in sizes {
            if size == 0 || size > LARGEST_DIMENSION {
                return Err((field, format!("is {size}, not between 1 and {LARGEST_DIMENSION}")));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let problem = format!(
                "is {}, which does not divide the {} attention heads",
                self.num_kv_heads, self.num_heads
            );
            return Err(("num_key_value_heads", problem));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(("head_dim", format!("is {}, rotary pairs need it even", self.head_dim)));
        }
        for (field, size) in [("query size", self.query_size()), ("key/value size", self.kv_size())]
        {
            if size > LARGEST_DIMENSION {
                return Err(("head_dim", format!("gives a {field} of {size}")));
            }
        }
        if self.max_context == 0 {
            return Err(("max_position_embeddings", "is 0".to_owned()));
        }
        if self.sliding_window == Some(0) {
            return Err(("sliding_window", "is 0; leave it out for no window".to_owned()));
        }
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if !positive(self.rms_norm_eps) {
            return Err(("rms_norm_eps", format!("is {}, not positive", self.rms_norm_eps)));
        }
        if !positive(self.rope_theta) {
            return Err(("rope_theta", format!("is {}, not positive", self.rope_theta)));
        }
        match &self.rope_scaling {
            RopeScaling::Linear { factor } if !positive(*factor) => {
                Err(("rope_scaling", format!("has the factor {factor}, not a positive one")))
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }
                if !(positive(*factor)
                    && positive(*low_freq_factor)
                    && high_freq_factor.is_finite()
                    && high_freq_factor > low_freq_factor
                    && *original_context > 0) =>
            {
                let problem = format!(
                    "has factor {factor}, low_freq_factor {low_freq_factor}, high_freq_factor \
                     {high_freq_factor} and original context {original_context}; all must be \
                     positive, and high_freq_factor the larger one"
                );
                Err(("rope_scaling", problem))
            }
            RopeScaling::PerFrequency(divisors) => self.check_divisors(divisors),
            _ => Ok(()),
        }
    }

    fn check_divisors(&self, divisors: &[f32]) -> Result<(), (&'static str, String)> {
        let (field, pairs) = ("rope_freqs.weight", self.head_dim / 2);
        if divisors.len() != pairs {
            return Err((field, format!("has {} divisors for {pairs} pairs", divisors.len())));
        }
        let positive = |divisor: f32| divisor > 0.0 && divisor.is_finite();
        match divisors.iter().find(|&&divisor| !positive(divisor)) {
            Some(wrong) => Err((field, format!("holds {wrong}, not a positive number"))),
            None => Ok(()),
        }
    }

    /// Output features of the query projection.
    pub fn query_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Output features of the key and of the value projection.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// The attention window of layer `layer`, in tokens.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| layer >= self.sliding_window_from_layer)
    }

    /// Inverse rotary frequencies, radians per token, one per pair of a head (`head_dim / 2`),
    /// computed in f64: `theta^(-2i / head_dim)`, then stretched by [`RopeScaling`].
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        let base = (0..half).map(|i| self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64));
        match &self.rope_scaling {
            RopeScaling::None => base.collect(),
            RopeScaling::Linear { factor } => base.map(|f| f / factor).collect(),
            RopeScaling::PerFrequency(divisors) => {
                base.zip(divisors).map(|(f, &divisor)| f / f64::from(divisor)).collect()
            }
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let context = original_context as f64;
                base.map(|frequency| {
                    let wavelength = std::f64::consts::TAU / frequency;
                    if wavelength < context / high_freq_factor {
                        frequency
                    } else if wavelength > context / low_freq_factor {
                        frequency / factor
                    } else {
                        let ramp = (context / wavelength - low_freq_factor)
                            / (high_freq_factor - low_freq_factor);
                        (1.0 - ramp) * frequency / factor + ramp * frequency
                    }
                })
                .collect()
            }
        }
    }
}
