//! What a model's server answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limn::engine::server::answer(bytes));
