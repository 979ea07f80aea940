//! A value of the state folder: a block of states, packed or gathered, or of an index.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limn::store::entry::block(bytes));
