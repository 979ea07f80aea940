#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limn::engine::entry::safetensors(bytes));
