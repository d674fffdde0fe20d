//! The operations on the processor in f32, through [`crate::kernels`].

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Storage, Tensor};

use super::{
    Attended, AttentionShape, Frozen, Ops, Rotation, Segment, TargetScores, TensorOps, Transpose,
    score_chunk,
};
use crate::kernels::{self, Output, Precision, View};

/// The operations on the processor.
#[derive(Debug, Clone)]
pub struct HostOps {
    precision: Precision,
    /// Where candle's own operation serves as well as a kernel would.
    tensor: TensorOps,
}

impl HostOps {
    /// Operations whose products with frozen weights round their inputs as `precision` says.
    pub fn new(precision: Precision) -> Self {
        Self { precision, tensor: TensorOps::new(&Device::Cpu) }
    }
}

/// Calls `f` with the values of a tensor on the processor.
fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
        (&*storage, layout.contiguous_offsets())
    else {
        candle_core::bail!("host operations need contiguous f32 tensors on the processor")
    };
    Ok(f(&values[start..end]))
}

struct InPlace<F>(F);

impl<F: Fn(&mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "kernel in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("host operations need contiguous f32 tensors")
        };
        (self.0)(&mut values[start..end]);
        Ok(())
    }
}

/// Fills a new tensor of `shape`, or adds to `onto` in place.
fn write(
    onto: Option<Tensor>,
    shape: (usize, usize),
    f: impl Fn(&mut [f32], Output),
) -> Result<Tensor> {
    match onto {
        Some(sum) => {
            sum.inplace_op1(&InPlace(|values: &mut [f32]| f(values, Output::Accumulate)))?;
            Ok(sum)
        }
        None => {
            let mut values = vec![0.0; shape.0 * shape.1];
            f(&mut values, Output::Overwrite);
            Tensor::from_vec(values, shape, &Device::Cpu)
        }
    }
}

impl Ops for HostOps {
    fn embed(&self, table: &Frozen, ids: &[u32]) -> Result<Tensor> {
        let table = table.host()?;
        let mut values = vec![0.0; ids.len() * table.cols()];
        for (&id, row) in ids.iter().zip(values.chunks_exact_mut(table.cols())) {
            if id as usize >= table.rows() {
                candle_core::bail!("token {id} is outside the vocabulary of {}", table.rows());
            }
            kernels::dequantize_row(table, id as usize, row);
        }
        Tensor::from_vec(values, (ids.len(), table.cols()), &Device::Cpu)
    }

    fn project(&self, x: &Tensor, w: &Frozen, onto: Option<Tensor>) -> Result<Tensor> {
        let (m, w) = (x.dims2()?.0, w.host()?);
        read(x, |x| {
            write(onto, (m, w.rows()), |y, output| {
                kernels::frozen_matmul(x, m, w, 0..w.rows(), y, output, self.precision);
            })
        })?
    }

    fn project_back(&self, dy: &Tensor, w: &Frozen, onto: Option<Tensor>) -> Result<Tensor> {
        let (m, w) = (dy.dims2()?.0, w.host()?);
        read(dy, |dy| {
            write(onto, (m, w.cols()), |dx, output| {
                let rows = 0..w.rows();
                kernels::frozen_matmul_transposed(dy, m, w, rows, dx, output, self.precision);
            })
        })?
    }

    fn matmul(
        &self,
        a: (&Tensor, Transpose),
        b: (&Tensor, Transpose),
        scale: f64,
        onto: Option<Tensor>,
    ) -> Result<Tensor> {
        let (a_dims, b_dims) = (a.0.dims2()?, b.0.dims2()?);
        read(a.0, |a_values| {
            read(b.0, |b_values| {
                let a = view(a_values, a_dims, a.1);
                let b = view(b_values, b_dims, b.1);
                write(onto, (a.rows(), b.cols()), |c, output| {
                    kernels::matmul(a, b, scale as f32, c, output, Precision::F32);
                })
            })?
        })?
    }

    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        let width = b.elem_count();
        read(b, |b| {
            a.inplace_op1(&InPlace(|values: &mut [f32]| {
                for row in values.chunks_exact_mut(width) {
                    for (a, b) in row.iter_mut().zip(b) {
                        *a += b;
                    }
                }
            }))
        })??;
        Ok(a)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
        self.tensor.rms_norm(x, gain, eps)
    }

    fn rms_norm_back(
        &self,
        x: &Tensor,
        gain: &Tensor,
        eps: f64,
        dy: &Tensor,
        onto: Option<Tensor>,
    ) -> Result<Tensor> {
        self.tensor.rms_norm_back(x, gain, eps, dy, onto)
    }

    fn rotate(
        &self,
        x: Tensor,
        head_dim: usize,
        rotation: &Rotation,
        inverse: bool,
    ) -> Result<Tensor> {
        self.tensor.rotate(x, head_dim, rotation, inverse)
    }

    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shape: AttentionShape,
        segments: &[Segment],
    ) -> Result<Attended> {
        self.tensor.attend(q, k, v, shape, segments)
    }

    fn attend_back(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        attended: &Attended,
        d_output: &Tensor,
        shape: AttentionShape,
        segments: &[Segment],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        self.tensor.attend_back(q, k, v, attended, d_output, shape, segments)
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        self.tensor.swiglu(gate, up)
    }

    fn swiglu_back(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        self.tensor.swiglu_back(gate, up, dy)
    }

    fn score(
        &self,
        x: &Tensor,
        head: &Frozen,
        targets: &[u32],
        with_gradient: bool,
    ) -> Result<TargetScores> {
        let head = head.host()?;
        let (vocabulary, hidden) = (head.rows(), head.cols());
        let chunk = score_chunk(vocabulary).min(targets.len().max(1));
        let mut logits = vec![0.0; chunk * vocabulary];
        let mut scores =
            TargetScores { log_probs: Vec::new(), correct: Vec::new(), gradient: None };
        let mut gradient = vec![0.0; if with_gradient { targets.len() * hidden } else { 0 }];
        read(x, |x| {
            for (i, tokens) in targets.chunks(chunk).enumerate() {
                let (m, first) = (tokens.len(), i * chunk);
                let logits = &mut logits[..m * vocabulary];
                let x = &x[first * hidden..(first + m) * hidden];
                let rows = 0..vocabulary;
                let overwrite = Output::Overwrite;
                kernels::frozen_matmul(x, m, head, rows.clone(), logits, overwrite, self.precision);
                for (logits, &token) in logits.chunks_exact_mut(vocabulary).zip(tokens) {
                    let (log_prob, correct) = log_softmax_at(logits, token as usize, with_gradient);
                    scores.log_probs.push(log_prob);
                    scores.correct.push(correct);
                }
                if with_gradient {
                    let dx = &mut gradient[first * hidden..(first + m) * hidden];
                    let precision = self.precision;
                    kernels::frozen_matmul_transposed(
                        logits, m, head, rows, dx, overwrite, precision,
                    );
                }
            }
        })?;
        if with_gradient {
            let shape = (targets.len(), hidden);
            scores.gradient = Some(Tensor::from_vec(gradient, shape, &Device::Cpu)?);
        }
        Ok(scores)
    }
}

fn view(values: &[f32], (rows, cols): (usize, usize), transpose: Transpose) -> View<'_> {
    let view = View::new(values, rows, cols);
    if transpose == Transpose::Yes { view.t() } else { view }
}

/// Log-probability of `token` under a row of logits and whether it is the likeliest; where the
/// gradient is wanted the row becomes `onehot(token) − softmax`.
fn log_softmax_at(logits: &mut [f32], token: usize, with_gradient: bool) -> (f64, bool) {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    let max = logits[best];
    let chosen = f64::from(logits[token]);
    let mut sum = 0f64;
    if with_gradient {
        for logit in logits.iter_mut() {
            *logit = (*logit - max).exp();
            sum += f64::from(*logit);
        }
        let scale = (-1.0 / sum) as f32;
        for value in logits.iter_mut() {
            *value *= scale;
        }
        logits[token] += 1.0;
    } else {
        sum = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    }
    (chosen - f64::from(max) - sum.ln(), best == token)
}
