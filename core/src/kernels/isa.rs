//! Which instructions the kernels use: chosen once, at run time.
//!
//! Invariant: an [`Isa`] exists only for instructions this processor has. The vector functions that
//! are unsafe to call without those instructions are called with an `Isa` in hand.

use std::sync::OnceLock;

/// A family of vector instructions that the kernels have a path for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstructionSet {
    /// Plain Rust, on every processor.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with products of bf16 pairs (AVX512_BF16).
    Avx512Bf16,
    /// The same with products of pairs of 16-bit integers (AVX512_VNNI). They take the place of
    /// bf16: no processor multiplies bf16 faster, and Intel's do it four times slower.
    Avx512Vnni,
    /// x86-64 with AVX-512 and products of bf16 pairs in tile registers (AMX), many times faster than
    /// any other, on systems that let a process use them: Linux.
    AmxBf16,
    /// 64-bit ARM.
    Neon,
    /// 64-bit ARM with products of bf16 pairs (FEAT_BF16).
    NeonBf16,
}

impl InstructionSet {
    /// All of them, best first within each architecture.
    pub const ALL: [Self; 8] = [
        Self::AmxBf16,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
        Self::Avx512,
        Self::Avx2,
        Self::NeonBf16,
        Self::Neon,
        Self::Portable,
    ];

    /// The name `FLEETUNE_KERNELS` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512Vnni => "avx512vnni",
            Self::AmxBf16 => "amxbf16",
            Self::Neon => "neon",
            Self::NeonBf16 => "neonbf16",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx512.is_available() && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AmxBf16 => Self::Avx512Bf16.is_available() && super::amx::has_bf16(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16 => std::arch::is_aarch64_feature_detected!("bf16"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The one the kernels use: the best there is, or the one that the environment variable
    /// `FLEETUNE_KERNELS` names. Decided on first use and kept.
    pub fn active() -> Self {
        Isa::active().0
    }

    /// Reads `FLEETUNE_KERNELS`. A program calls this at its start, so that a name that cannot be
    /// honoured is refused; the kernels themselves fall back to the best there is.
    ///
    /// # Errors
    /// When the variable names no path, or one that this processor lacks.
    pub fn from_environment() -> Result<Self, InstructionSetError> {
        match std::env::var(VARIABLE) {
            Ok(name) if !name.is_empty() => {
                let wanted = Self::ALL.into_iter().find(|set| set.name() == name);
                let wanted = wanted.ok_or(InstructionSetError::Unknown(name))?;
                if wanted.is_available() {
                    Ok(wanted)
                } else {
                    Err(InstructionSetError::Unavailable(wanted.name()))
                }
            }
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(Self::best()),
            Err(std::env::VarError::NotUnicode(name)) => {
                Err(InstructionSetError::Unknown(name.to_string_lossy().into_owned()))
            }
        }
    }

    fn best() -> Self {
        Self::ALL.into_iter().find(|set| set.is_available()).unwrap_or(Self::Portable)
    }
}

/// The environment variable that forces a path.
const VARIABLE: &str = "FLEETUNE_KERNELS";

/// `FLEETUNE_KERNELS` asks for what cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstructionSetError {
    /// Not the name of a path.
    #[error(
        "FLEETUNE_KERNELS={0} names no kernels: use portable, avx2, avx512, avx512bf16, avx512vnni, \
         amxbf16, neon or neonbf16, or unset it"
    )]
    Unknown(String),
    /// The processor lacks the instructions.
    #[error("FLEETUNE_KERNELS={0}: this processor has no such instructions; unset it")]
    Unavailable(&'static str),
}

/// Proof that this processor has the instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Isa(InstructionSet);

impl Isa {
    /// The path in use.
    pub(super) fn active() -> Self {
        static ACTIVE: OnceLock<Isa> = OnceLock::new();
        *ACTIVE.get_or_init(|| {
            let set = InstructionSet::from_environment().unwrap_or_else(|error| {
                eprintln!("{error}; using {}", InstructionSet::best().name());
                InstructionSet::best()
            });
            Isa(set)
        })
    }

    /// A path, where this processor has it.
    #[cfg(test)]
    pub(super) fn new(set: InstructionSet) -> Option<Self> {
        set.is_available().then_some(Isa(set))
    }

    /// Every path of this processor.
    #[cfg(test)]
    pub(super) fn all() -> impl Iterator<Item = Self> {
        InstructionSet::ALL.into_iter().filter_map(Self::new)
    }

    /// Whether AVX-512 F, BW, DQ and VL are there.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn has_avx512(self) -> bool {
        use InstructionSet::{AmxBf16, Avx512, Avx512Bf16, Avx512Vnni};
        matches!(self.0, Avx512 | Avx512Bf16 | Avx512Vnni | AmxBf16)
    }

    /// Whether AVX512_BF16 is there, too.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn has_avx512_bf16(self) -> bool {
        matches!(self.0, InstructionSet::Avx512Bf16 | InstructionSet::AmxBf16)
    }

    /// What the processor is proved to have.
    pub(super) fn set(self) -> InstructionSet {
        self.0
    }
}

/// Compiles one generic function once for each family of instructions, and defines a function that
/// takes an [`Isa`] and calls the fitting one.
///
/// The generic function is `#[inline(always)]`, written so that it vectorises, and takes one const
/// parameter: whether the processor multiplies and adds in one instruction.
macro_rules! multiversion {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?)
        $(-> $result:ty)? = $generic:ident) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name(isa: $crate::kernels::isa::Isa, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::isa::InstructionSet;

                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    $generic::<true>($($argument),*)
                }

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    $generic::<true>($($argument),*)
                }

                match isa.set() {
                    InstructionSet::Avx2 => {
                        // SAFETY: an `Isa` exists only where its instructions do.
                        return unsafe { avx2($($argument),*) };
                    }
                    InstructionSet::Avx512
                    | InstructionSet::Avx512Bf16
                    | InstructionSet::Avx512Vnni
                    | InstructionSet::AmxBf16 => {
                        // SAFETY: as above.
                        return unsafe { avx512($($argument),*) };
                    }
                    _ => {}
                }
            }
            let _ = isa;
            // 64-bit ARM always has fused instructions, x86-64 by itself does not.
            $generic::<{ cfg!(target_arch = "aarch64") }>($($argument),*)
        }
    };
}
pub(super) use multiversion;
