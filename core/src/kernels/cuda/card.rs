//! Runs the kernels on a card, on candle's stream, so in order with candle's own operations.

use std::cell::RefCell;

use candle_core::cuda::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg,
};
use candle_core::cuda::{CudaStorageSlice, WrapErr};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage,
    Tensor,
};

use super::{Arg, Launch, Runner, extent};

/// The kernels as `build.rs` compiled them.
const MODULE: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// A card, by its candle device.
#[derive(Debug, Clone)]
pub struct Card {
    device: Device,
    cuda: CudaDevice,
}

impl Card {
    /// The card of `device`.
    ///
    /// # Errors
    /// When it is no card.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { device: device.clone(), cuda: device.as_cuda_device()?.clone() })
    }

    /// Collects the arguments from `args` on and runs the kernel with all of them. Tensors stay
    /// borrowed until then.
    fn run(
        &self,
        launch: &Launch,
        grid: [u32; 3],
        args: &[Arg],
        values: &mut Vec<Value>,
    ) -> Result<()> {
        let Some((first, rest)) = args.split_first() else {
            return self.start(launch, grid, values);
        };
        match first {
            Arg::U32(number) => {
                values.push(Value::U32(*number));
                self.run(launch, grid, rest, values)
            }
            Arg::F32(number) => {
                values.push(Value::F32(*number));
                self.run(launch, grid, rest, values)
            }
            Arg::Read(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                let Storage::Cuda(storage) = &*storage else {
                    candle_core::bail!("a kernel of a card met a tensor that lies elsewhere")
                };
                let (start, _) = extent(layout)?;
                let stream = self.cuda.cuda_stream();
                match &storage.slice {
                    CudaStorageSlice::F32(slice) => {
                        self.reading(slice, start, &stream, launch, grid, rest, values)
                    }
                    CudaStorageSlice::BF16(slice) => {
                        self.reading(slice, start, &stream, launch, grid, rest, values)
                    }
                    CudaStorageSlice::U32(slice) => {
                        self.reading(slice, start, &stream, launch, grid, rest, values)
                    }
                    _ => candle_core::bail!("no kernel reads {:?}", tensor.dtype()),
                }
            }
            Arg::Write(tensor) => {
                let writing = Writing { card: self, launch, grid, rest, values: values.into() };
                tensor.inplace_op1(&writing)
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn reading<T>(
        &self,
        slice: &CudaSlice<T>,
        start: usize,
        stream: &CudaStream,
        launch: &Launch,
        grid: [u32; 3],
        rest: &[Arg],
        values: &mut Vec<Value>,
    ) -> Result<()> {
        // The guard tells other streams that the values are read; it must outlive the launch.
        let (pointer, _guard) = slice.device_ptr(stream);
        values.push(Value::pointer::<T>(pointer, start));
        self.run(launch, grid, rest, values)
    }

    fn start(&self, launch: &Launch, grid: [u32; 3], values: &[Value]) -> Result<()> {
        let kernel = self.cuda.get_or_load_custom_func(&launch.name()?, "fleetune", MODULE)?;
        let mut builder = kernel.builder();
        for value in values {
            match value {
                Value::U32(number) => builder.arg(number),
                Value::F32(number) => builder.arg(number),
                Value::Pointer(pointer) => builder.arg(pointer),
            };
        }
        let config = LaunchConfig {
            grid_dim: grid.into(),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are of the kinds and lengths that the kernel declares, which its
        // caller answers for and the tests check with the same kernels; their memory is borrowed.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// An argument as the driver takes it.
#[derive(Debug, Clone, Copy)]
enum Value {
    U32(u32),
    F32(f32),
    Pointer(u64),
}

impl Value {
    fn pointer<T>(storage: u64, start: usize) -> Self {
        Self::Pointer(storage + (start * size_of::<T>()) as u64)
    }
}

/// A launch whose next argument is borrowed to be changed. Candle asks for a shared value and calls it
/// once.
struct Writing<'a> {
    card: &'a Card,
    launch: &'a Launch,
    grid: [u32; 3],
    rest: &'a [Arg<'a>],
    values: RefCell<&'a mut Vec<Value>>,
}

impl Writing<'_> {
    fn go_on<T>(&self, slice: &mut CudaSlice<T>, layout: &Layout) -> Result<()> {
        let (start, _) = extent(layout)?;
        let stream = self.card.cuda.cuda_stream();
        let (pointer, _guard) = slice.device_ptr_mut(&stream);
        let mut values = self.values.borrow_mut();
        values.push(Value::pointer::<T>(pointer, start));
        self.card.run(self.launch, self.grid, self.rest, &mut values)
    }
}

impl InplaceOp1 for Writing<'_> {
    fn name(&self) -> &'static str {
        self.launch.kernel
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("a kernel of a card met a tensor on the processor")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        match &mut storage.slice {
            CudaStorageSlice::F32(slice) => self.go_on(slice, layout),
            CudaStorageSlice::BF16(slice) => self.go_on(slice, layout),
            CudaStorageSlice::U32(slice) => self.go_on(slice, layout),
            _ => candle_core::bail!("no kernel writes this type"),
        }
    }
}

impl Runner for Card {
    fn device(&self) -> &Device {
        &self.device
    }

    fn empty(&self, shape: Shape, dtype: DType) -> Result<Tensor> {
        if shape.elem_count() == 0 {
            return Tensor::zeros(shape, dtype, &self.device);
        }
        // SAFETY: numbers of any bits are valid on the card, and who asks for the tensor writes all of
        // it before anything reads it.
        unsafe { Tensor::empty(shape, dtype, &self.device) }
    }

    fn launch(&self, launch: Launch, args: &[Arg]) -> Result<()> {
        match launch.grid()? {
            Some(grid) => self.run(&launch, grid, args, &mut Vec::with_capacity(args.len())),
            None => Ok(()),
        }
    }
}
