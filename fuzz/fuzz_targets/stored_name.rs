#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hfcrypt::crypto::fuzz::stored_name(data));
