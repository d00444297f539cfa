#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| overlay_fuzz::peer_probe(input));
