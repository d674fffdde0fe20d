//! Any bytes are a message or an error; a message means the same when it is written and read again.
#![no_main]

use fleetune_core::protocol::{
    Blob, BlobId, ChunkSet, FRAME_PREFIX, Request, Response, decode_frame, encode_frame,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = decode_frame::<Request>(bytes) {
        let _ = request.check();
        let frame = encode_frame(&request).unwrap();
        assert_eq!(decode_frame::<Request>(&frame[FRAME_PREFIX..]).unwrap(), request);
    }
    if let Ok(response) = decode_frame::<Response>(bytes) {
        let frame = encode_frame(&response).unwrap();
        assert_eq!(decode_frame::<Response>(&frame[FRAME_PREFIX..]).unwrap(), response);
        if let Response::Missing(chunks) = response {
            walk(&chunks);
        }
    }
});

/// However many chunks a peer claims, the blob bounds them.
fn walk(chunks: &ChunkSet) {
    let blob = Blob { id: BlobId([0; 32]), size: 3 << 20 };
    let runs = chunks.ranges.len() as u32;
    assert!(chunks.of_blob(&blob).count() as u32 <= runs * blob.chunks());
}
