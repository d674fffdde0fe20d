//! The operations on the processor in f32, through [`crate::kernels`].

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Storage, Tensor};

use super::{Attended, AttentionShape, Frozen, Ops, Rotation, Segment, TargetScores, Transpose};
use crate::kernels::{self, HeadChunk, Output, Precision, View};

/// The operations on the processor.
#[derive(Debug, Clone)]
pub struct HostOps {
    precision: Precision,
}

impl HostOps {
    /// Operations whose products with frozen weights round their inputs as `precision` says.
    pub fn new(precision: Precision) -> Self {
        Self { precision }
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

/// Calls `f` with the values of two tensors on the processor.
fn read2<R>(a: &Tensor, b: &Tensor, f: impl FnOnce(&[f32], &[f32]) -> R) -> Result<R> {
    read(a, |a| read(b, |b| f(a, b)))?
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
        let mut inverse_rms = vec![0.0; x.elem_count() / gain.elem_count()];
        let mut y = vec![0.0; x.elem_count()];
        read2(x, gain, |x, gain| {
            kernels::rms_norm(x, gain, eps as f32, &mut y, &mut inverse_rms);
        })?;
        Tensor::from_vec(y, x.shape(), &Device::Cpu)
    }

    fn rms_norm_back(
        &self,
        x: &Tensor,
        gain: &Tensor,
        eps: f64,
        dy: &Tensor,
        onto: Option<Tensor>,
    ) -> Result<Tensor> {
        // One pass over a row costs less than keeping its scale from the forward pass.
        let inverse_rms = read(x, |x| {
            let rows = x.chunks_exact(gain.elem_count());
            rows.map(|row| inverse_rms(row, eps)).collect::<Vec<f32>>()
        })?;
        read2(x, gain, |x, gain| {
            read(dy, |dy| {
                write(onto, dy_shape(x, gain), |dx, output| {
                    kernels::rms_norm_backward(x, gain, &inverse_rms, dy, dx, output);
                })
            })?
        })??
        .reshape(x.shape())
    }

    fn rotate(
        &self,
        x: Tensor,
        head_dim: usize,
        rotation: &Rotation,
        inverse: bool,
    ) -> Result<Tensor> {
        let way = match inverse {
            false => kernels::Rotation::Forward,
            true => kernels::Rotation::Inverse,
        };
        // The tables hold a row for each token rather than for each position.
        let rows: Vec<u32> = (0..x.dims2()?.0 as u32).collect();
        read2(&rotation.cos, &rotation.sin, |cos, sin| {
            x.inplace_op1(&InPlace(|x: &mut [f32]| {
                kernels::rotary(x, head_dim, &rows, cos, sin, way);
            }))
        })??;
        Ok(x)
    }

    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shape: AttentionShape,
        segments: &[Segment],
    ) -> Result<Attended> {
        let (tokens, width) = q.dims2()?;
        let mut output = vec![0.0; tokens * width];
        let mut log_sum_exp = vec![0.0; tokens * shape.heads];
        read2(k, v, |k, v| {
            read(q, |q| {
                kernels::attention(&shape, segments, q, k, v, &mut output, &mut log_sum_exp);
            })
        })??;
        Ok(Attended {
            output: Tensor::from_vec(output, (tokens, width), &Device::Cpu)?,
            log_sum_exp: Tensor::from_vec(log_sum_exp, (tokens, shape.heads), &Device::Cpu)?,
        })
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
        let mut gradients = [q, k, v].map(|input| vec![0.0; input.elem_count()]);
        let [dq, dk, dv] = &mut gradients;
        read2(k, v, |k, v| {
            read2(&attended.output, &attended.log_sum_exp, |output, log_sum_exp| {
                read2(q, d_output, |q, d_output| {
                    kernels::attention_backward(
                        &shape,
                        segments,
                        q,
                        k,
                        v,
                        output,
                        log_sum_exp,
                        d_output,
                        dq,
                        dk,
                        dv,
                    );
                })
            })?
        })??;
        let [dq, dk, dv] = gradients;
        Ok((
            Tensor::from_vec(dq, q.shape(), &Device::Cpu)?,
            Tensor::from_vec(dk, k.shape(), &Device::Cpu)?,
            Tensor::from_vec(dv, v.shape(), &Device::Cpu)?,
        ))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let mut y = vec![0.0; gate.elem_count()];
        read2(gate, up, |gate, up| kernels::swiglu(gate, up, &mut y))?;
        Tensor::from_vec(y, gate.shape(), &Device::Cpu)
    }

    fn swiglu_back(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut d_gate = vec![0.0; gate.elem_count()];
        let mut d_up = vec![0.0; gate.elem_count()];
        read2(gate, up, |gate, up| {
            read(dy, |dy| kernels::swiglu_backward(gate, up, dy, &mut d_gate, &mut d_up))
        })??;
        Ok((
            Tensor::from_vec(d_gate, gate.shape(), &Device::Cpu)?,
            Tensor::from_vec(d_up, gate.shape(), &Device::Cpu)?,
        ))
    }

    fn score(
        &self,
        x: &Tensor,
        head: &Frozen,
        targets: &[u32],
        chunk: usize,
        with_gradient: bool,
    ) -> Result<TargetScores> {
        let head = head.host()?;
        let chunk = HeadChunk { positions: chunk.max(1), columns: head.rows() };
        // A loss of −weight · log p whose weight is −1 has the gradient of log p.
        let weights = vec![-1.0; targets.len()];
        let mut gradient = with_gradient.then(|| vec![0.0; x.elem_count()]);
        let rows = read(x, |x| {
            let gradient = gradient.as_deref_mut();
            let precision = self.precision;
            kernels::linear_cross_entropy(x, head, targets, &weights, gradient, chunk, precision)
        })?;
        let gradient = gradient.map(|gradient| Tensor::from_vec(gradient, x.shape(), &Device::Cpu));
        Ok(TargetScores {
            log_probs: rows.iter().map(|row| f64::from(row.log_probability())).collect(),
            correct: rows.iter().zip(targets).map(|(row, &t)| row.predicted() == t).collect(),
            gradient: gradient.transpose()?,
        })
    }
}

fn view(values: &[f32], (rows, cols): (usize, usize), transpose: Transpose) -> View<'_> {
    let view = View::new(values, rows, cols);
    if transpose == Transpose::Yes { view.t() } else { view }
}

fn dy_shape(x: &[f32], gain: &[f32]) -> (usize, usize) {
    (x.len() / gain.len(), gain.len())
}

fn inverse_rms(row: &[f32], eps: f64) -> f32 {
    let squares: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    (1.0 / (squares / row.len() as f64 + eps).sqrt()) as f32
}
