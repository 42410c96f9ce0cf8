#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hfcrypt::crypto::fuzz::container_header(data));
