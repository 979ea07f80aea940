#![no_main]

// libFuzzer's hook ends the process at any panic. The tokenizers library has panics that `Chat` catches and makes errors of; what
// nobody catches ends the process without the hook, too.
libfuzzer_sys::fuzz_target!(
    init: drop(std::panic::take_hook()),
    |bytes: &[u8]| limn::engine::entry::chat(bytes)
);
