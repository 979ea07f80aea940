//! A record of limn's own topics, or of its journal. What is read is written and read again as it was.
#![no_main]

use limn::checkpoint::OffsetSet;
use limn::codec;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = codec::state_version(bytes);
    if let Ok(state) = codec::decode_state(bytes) {
        let written = codec::encode(&state);
        let again = codec::decode_state(&written).expect("limn wrote it");
        assert_eq!(codec::encode(&again), written);
        // A restore asks for no more than this.
        assert_eq!(codec::state_version(&written).ok(), Some(state.version));
        if let Ok(marker) = codec::marker(&state.marker.unwrap_or_default()) {
            let _ = marker.fold([3, 7], Some(5));
        }
    }
    if let Ok(change) = codec::decode_change(bytes) {
        let _ = codec::change_json(&change);
        for source in &change.sources {
            let _ = codec::offsets("change event", &source.offsets);
        }
    }
    if let Ok(checkpoint) = codec::decode_checkpoint(bytes) {
        let written = codec::encode(&checkpoint);
        let again = codec::decode_checkpoint(&written).expect("limn wrote it");
        assert_eq!(codec::encode(&again), written);
        for listed in [&checkpoint.rejected, &checkpoint.late] {
            let _ = OffsetSet::from_gaps(checkpoint.restart_offset, listed);
        }
    }
    if let Ok(call) = codec::decode_call(bytes) {
        let written = codec::encode(&call);
        let again = codec::decode_call(&written).expect("limn wrote it");
        assert_eq!(codec::encode(&again), written);
    }
});
