use super::*;

#[test]
fn a_device_is_named_as_it_is_shown() {
    for (name, device) in [
        ("cpu", Device::Cpu),
        ("cuda:0", Device::Cuda(0)),
        ("cuda:7", Device::Cuda(7)),
    ] {
        assert_eq!(name.parse(), Ok(device));
        assert_eq!(device.to_string(), name);
    }
    assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
    for wrong in [
        "",
        "gpu",
        "CUDA",
        "cpu:0",
        "cuda:",
        "cuda:+1",
        "cuda:-1",
        "cuda:x",
        "cuda:65536",
    ] {
        assert_eq!(
            wrong.parse::<Device>(),
            Err(Device::WANTED.to_owned()),
            "{wrong}"
        );
    }
}

#[test]
fn a_gpu_computes_in_bf16_unless_told_otherwise_and_never_in_int8() {
    let gpu = Device::Cuda(1);
    assert_eq!(gpu.dtype(Dtype::Auto), Ok(Dtype::Bf16));
    assert_eq!(gpu.dtype(Dtype::F32), Ok(Dtype::F32));
    assert!(gpu.dtype(Dtype::Int8).unwrap_err().contains("bf16"));
    assert_eq!(Device::Cpu.dtype(Dtype::Int8), Ok(Dtype::Int8));
    assert_ne!(Device::Cpu.dtype(Dtype::Auto), Ok(Dtype::Auto));
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_build_without_cuda_says_how_to_get_one() {
    let error = Device::Cuda(3).open().unwrap_err().to_string();
    assert!(error.contains("engine.device: cuda:3"), "{error}");
    assert!(error.contains("scripts/build-cuda.sh"), "{error}");
    assert!(Device::Cpu.open().unwrap().is_cpu());
}
