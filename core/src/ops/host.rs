//! The operations on the processor in f32, through [`crate::kernels`].

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Storage, Tensor};

use super::{Attended, AttentionShape, Frozen, Ops, Rotation, Segment, TargetScores, Transpose};
use crate::kernels::{self, Output, Precision, View};

/// The operations on the processor.
#[derive(Debug, Clone)]
pub struct HostOps {
    precision: Precision,
    writing: bool,
}

impl HostOps {
    /// Operations whose products with frozen weights round their inputs as `precision` says.
    pub fn new(precision: Precision) -> Self {
        Self { precision, writing: false }
    }

    /// Operations for passes of few rows, as when writing: faster there, but a row's last bits depend
    /// on how many rows there are.
    pub fn for_writing(precision: Precision) -> Self {
        Self { precision, writing: true }
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

/// A function that changes a tensor's values. Candle asks for a shared one and calls it once.
struct InPlace<F>(RefCell<F>);

/// Calls `f` with the values of a tensor, to change them.
fn change(tensor: &Tensor, f: impl FnMut(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&InPlace(RefCell::new(f)))
}

impl<F: FnMut(&mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "kernel in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("host operations need contiguous f32 tensors")
        };
        (self.0.borrow_mut())(&mut values[start..end]);
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
            change(&sum, |values| f(values, Output::Accumulate))?;
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

    fn project(&self, x: &Tensor, weights: &[&Frozen]) -> Result<Vec<Tensor>> {
        let m = x.dims2()?.0;
        let weights = weights.iter().map(|w| w.host()).collect::<Result<Vec<_>>>()?;
        let outputs = read(x, |x| {
            if self.writing && m <= kernels::FEW {
                kernels::frozen_matmul_few(x, m, &weights)
            } else {
                kernels::frozen_matmul_all(x, m, &weights, self.precision)
            }
        })?;
        let outputs = weights.iter().zip(outputs);
        outputs.map(|(w, y)| Tensor::from_vec(y, (m, w.rows()), &Device::Cpu)).collect()
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

    fn adapt(
        &self,
        x: &Tensor,
        groups: &[Range<usize>],
        (factors, transpose): (&Tensor, Transpose),
        scale: f64,
        onto: Option<Tensor>,
    ) -> Result<Tensor> {
        let ((tokens, width), (_, rows, cols)) = (x.dims2()?, factors.dims3()?);
        let out = if transpose == Transpose::Yes { rows } else { cols };
        read2(x, factors, |x, factors| {
            write(onto, (tokens, out), |y, output| {
                for (group, factor) in groups.iter().zip(factors.chunks_exact(rows * cols)) {
                    let x = View::new(part(x, group, width), group.len(), width);
                    let factor = View::new(factor, rows, cols);
                    let factor = if transpose == Transpose::Yes { factor.t() } else { factor };
                    let y = &mut y[group.start * out..group.end * out];
                    kernels::matmul(x, factor, scale as f32, y, output, Precision::F32);
                }
            })
        })?
    }

    fn adapt_gradient(
        &self,
        dy: &Tensor,
        x: &Tensor,
        groups: &[Range<usize>],
        scale: f64,
    ) -> Result<Tensor> {
        let (out, width) = (dy.dims2()?.1, x.dims2()?.1);
        let mut gradients = vec![0.0; groups.len() * out * width];
        read2(dy, x, |dy, x| {
            for (group, gradient) in groups.iter().zip(gradients.chunks_exact_mut(out * width)) {
                let dy = View::new(part(dy, group, out), group.len(), out).t();
                let x = View::new(part(x, group, width), group.len(), width);
                let output = Output::Overwrite;
                kernels::matmul(dy, x, scale as f32, gradient, output, Precision::F32);
            }
        })?;
        Tensor::from_vec(gradients, (groups.len(), out, width), &Device::Cpu)
    }

    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        read(b, |b| change(&a, |a| kernels::add(a, b)))??;
        Ok(a)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
        let y = read2(x, gain, |x, gain| kernels::rms_norm(x, gain, eps as f32))?;
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
        read2(x, gain, |x, gain| {
            read(dy, |dy| {
                write(onto, dy_shape(x, gain), |dx, output| {
                    kernels::rms_norm_backward(x, gain, eps as f32, dy, dx, output);
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
            change(&x, |x| kernels::rotary(x, head_dim, &rows, cos, sin, way))
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
        let y = read2(gate, up, kernels::swiglu)?;
        Tensor::from_vec(y, gate.shape(), &Device::Cpu)
    }

    fn gated(&self, x: &Tensor, gate: &Frozen, up: &Frozen) -> Result<Tensor> {
        let m = x.dims2()?.0;
        if self.writing && m <= kernels::FEW {
            let projected = self.project(x, &[gate, up])?;
            return self.swiglu(&projected[0], &projected[1]);
        }
        let (gate, up) = (gate.host()?, up.host()?);
        let hidden = read(x, |x| kernels::frozen_gated(x, m, gate, up, self.precision))?;
        Tensor::from_vec(hidden, (m, gate.rows()), &Device::Cpu)
    }

    fn swiglu_back(&self, gate: Tensor, up: Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut changed = Ok(());
        read(dy, |dy| {
            change(&gate, |gate| {
                changed = change(&up, |up| kernels::swiglu_backward(gate, up, dy));
            })
        })??;
        changed?;
        Ok((gate, up))
    }

    fn score(
        &self,
        x: &Tensor,
        head: &Frozen,
        targets: &[u32],
        with_gradient: bool,
    ) -> Result<TargetScores> {
        let head = head.host()?;
        // A loss of −weight · log p whose weight is −1 has the gradient of log p.
        let weights = vec![-1.0; targets.len()];
        let mut gradient = with_gradient.then(|| vec![0.0; x.elem_count()]);
        let rows = read(x, |x| {
            let gradient = gradient.as_deref_mut();
            let precision = self.precision;
            kernels::linear_cross_entropy(x, head, targets, &weights, gradient, precision)
        })?;
        let gradient = gradient.map(|gradient| Tensor::from_vec(gradient, x.shape(), &Device::Cpu));
        Ok(TargetScores {
            log_probs: rows.iter().map(|row| f64::from(row.log_probability())).collect(),
            correct: rows.iter().zip(targets).map(|(row, &t)| row.predicted() == t).collect(),
            gradient: gradient.transpose()?,
        })
    }
}

/// Some rows of a row-major matrix.
fn part<'a>(values: &'a [f32], rows: &Range<usize>, width: usize) -> &'a [f32] {
    &values[rows.start * width..rows.end * width]
}

fn dy_shape(x: &[f32], gain: &[f32]) -> (usize, usize) {
    (x.len() / gain.len(), gain.len())
}
