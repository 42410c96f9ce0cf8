#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hfcrypt::hub::fuzz::key(data));
