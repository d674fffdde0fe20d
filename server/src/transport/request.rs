//! One request: a frame in, a frame out, and bulk bytes after either.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fleetune_core::protocol::{
    BlobId, CHUNK_LEN, FRAME_PREFIX, MANIFEST_PAGE, Request, Response, decode_frame, encode_frame,
    frame_len,
};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use super::CHECKED_KIB;
use super::connection::{Link, Peer};
use crate::coordinator::{Content, Coordinator, RequestError};
use crate::store::{lock_upload, read_range};

/// Time for a message to arrive once its stream is open, and for an answer to leave.
const MESSAGE: Duration = Duration::from_secs(30);
/// Time for a chunk: 4 KiB/s are enough.
const CHUNK: Duration = Duration::from_secs(64);
/// Tells the sender that no more of a stream will be read.
const NO_MORE: VarInt = VarInt::from_u32(0);

/// What is answered.
enum Answer {
    Frame(Response),
    /// A frame, and then these chunks of a blob.
    Chunks {
        content: Content,
        range: std::ops::Range<u64>,
    },
}

/// Reads a request, has it done and answers it. Whoever goes away in between asks again.
pub async fn serve(link: &Link, mut send: SendStream, mut recv: RecvStream) {
    let answer = match timeout(MESSAGE, read_request(&mut recv)).await {
        Ok(Ok(request)) => answer(link, request, &mut recv).await,
        Ok(Err(error)) => Err(error),
        Err(_) => return,
    };
    // Nothing that still comes is needed; a sender of a refused chunk stops.
    let _ = recv.stop(NO_MORE);
    let metrics = link.shared.coordinator.metrics();
    metrics.requests.fetch_add(1, Ordering::Relaxed);
    let sent = match answer {
        Ok(Answer::Frame(response)) => write_frame(&mut send, &response).await,
        Ok(Answer::Chunks { content, range }) => {
            write_chunks(link, &mut send, content, range).await
        }
        Err(error) => {
            metrics.requests_failed.fetch_add(1, Ordering::Relaxed);
            if error.is_ours() {
                tracing::error!("a request failed: {error}");
            } else {
                tracing::debug!("a request was refused: {error}");
            }
            write_frame(&mut send, &Response::Error(error.refusal())).await
        }
    };
    if sent.is_some() {
        let _ = send.finish();
    }
}

async fn read_request(recv: &mut RecvStream) -> Result<Request, RequestError> {
    let malformed = |problem: String| RequestError::Malformed(problem);
    let mut prefix = [0; FRAME_PREFIX];
    recv.read_exact(&mut prefix).await.map_err(|error| malformed(error.to_string()))?;
    let len = frame_len(prefix).map_err(|error| malformed(error.to_string()))?;
    let mut body = vec![0; len];
    recv.read_exact(&mut body).await.map_err(|error| malformed(error.to_string()))?;
    let request: Request = decode_frame(&body).map_err(|error| malformed(error.to_string()))?;
    request.check().map_err(|refusal| malformed(refusal.message))?;
    Ok(request)
}

async fn answer(
    link: &Link,
    request: Request,
    recv: &mut RecvStream,
) -> Result<Answer, RequestError> {
    let certificate = match (link.peer, &request) {
        (Peer::Stranger, Request::Enrol(_)) => {
            return blocking(link, move |coordinator| match &request {
                Request::Enrol(enrol) => coordinator.enrol(enrol),
                _ => Err(RequestError::NotAllowed("no certificate")),
            })
            .await
            .map(Answer::Frame);
        }
        (Peer::Stranger, _) => return Err(RequestError::NotAllowed("a device's certificate")),
        (Peer::Device(_), Request::Enrol(_)) => {
            return Err(RequestError::NotAllowed("a connection for enrolment"));
        }
        (Peer::Device(certificate), _) => certificate,
    };
    match request {
        Request::UploadChunk { blob, index } => {
            let upload = blocking(link, move |coordinator| {
                let device = coordinator.device(certificate)?;
                coordinator.upload(device, blob)
            })
            .await?;
            let len = lock_upload(&upload).chunk_len(index)?;
            let busy = |_| RequestError::Busy;
            let _mine = link.chunks.acquire().await.map_err(busy)?;
            let _ours = link.shared.chunks.acquire().await.map_err(busy)?;
            let mut bytes = vec![0; len];
            match timeout(CHUNK, recv.read_exact(&mut bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(RequestError::Malformed(error.to_string())),
                Err(_) => return Err(RequestError::Busy),
            }
            let store =
                move |coordinator: &Coordinator| coordinator.store_chunk(&upload, index, &bytes);
            blocking(link, store).await.map(Answer::Frame)
        }
        Request::Fetch { blob, first, count } => {
            blocking(link, move |coordinator| {
                coordinator.device(certificate)?;
                fetch(coordinator, blob, first, count)
            })
            .await
        }
        Request::Commit(key) => {
            let kib = link.shared.coordinator.memory_of_commit(&key).div_ceil(1024);
            // Below a u32: it is at most all there is.
            let kib = kib.clamp(1, CHECKED_KIB.into()) as u32;
            let checked = link.shared.checked.acquire_many(kib).await;
            let _permit = checked.map_err(|_| RequestError::Busy)?;
            blocking(link, move |coordinator| {
                let device = coordinator.device(certificate)?;
                coordinator.commit(device, &key)
            })
            .await
            .map(Answer::Frame)
        }
        request => blocking(link, move |coordinator| {
            let device = coordinator.device(certificate)?;
            match request {
                Request::Renew { csr } => coordinator.renew(device, &csr),
                Request::CheckIn(request) => coordinator.check_in(device, &request),
                Request::Manifest { blob, first } => manifest(coordinator, blob, first),
                Request::UploadBegin(offer) => coordinator.begin_upload(device, *offer),
                Request::Leave => coordinator.leave(device),
                Request::Enrol(_)
                | Request::Fetch { .. }
                | Request::UploadChunk { .. }
                | Request::Commit(_) => Err(RequestError::NotAllowed("another connection")),
            }
        })
        .await
        .map(Answer::Frame),
    }
}

/// Does what may wait for the disk on a thread where that is no harm.
async fn blocking<T: Send + 'static>(
    link: &Link,
    work: impl FnOnce(&Coordinator) -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    let coordinator = std::sync::Arc::clone(&link.shared.coordinator);
    let done = tokio::task::spawn_blocking(move || work(&coordinator)).await;
    done.map_err(|error| RequestError::Internal(error.to_string()))?
}

fn manifest(coordinator: &Coordinator, blob: BlobId, first: u32) -> Result<Response, RequestError> {
    let offered = coordinator.offers().get(blob).ok_or(RequestError::Unknown("blob"))?;
    let chunks = offered.manifest.chunks().iter().skip(first as usize);
    Ok(Response::Manifest {
        size: offered.manifest.blob().size,
        hashes: chunks.take(MANIFEST_PAGE).copied().collect(),
    })
}

fn fetch(
    coordinator: &Coordinator,
    blob: BlobId,
    first: u32,
    count: u32,
) -> Result<Answer, RequestError> {
    let offered = coordinator.offers().get(blob).ok_or(RequestError::Unknown("blob"))?;
    let whole = offered.manifest.blob();
    let start = whole.chunk_range(first).start;
    let end = match count {
        0 => start,
        _ => whole.chunk_range(first.saturating_add(count - 1)).end,
    };
    Ok(Answer::Chunks { content: offered.content, range: start..end })
}

/// `None` where the device is gone.
async fn write_frame(send: &mut SendStream, response: &Response) -> Option<()> {
    let frame = match encode_frame(response) {
        Ok(frame) => frame,
        Err(error) => {
            tracing::error!("an answer does not fit in a message: {error}");
            return None;
        }
    };
    timeout(MESSAGE, send.write_all(&frame)).await.ok()?.ok()
}

async fn write_chunks(
    link: &Link,
    send: &mut SendStream,
    content: Content,
    range: std::ops::Range<u64>,
) -> Option<()> {
    let len = range.end - range.start;
    write_frame(send, &Response::Bytes { len }).await?;
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + CHUNK_LEN);
        let (_permit, bytes) = match &content {
            // Shared: what waits to be sent is no copy.
            Content::Memory(all) => (None, all.slice(start as usize..end as usize)),
            Content::File(path) => {
                let permit = link.shared.chunks.acquire().await.ok()?;
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || read_range(&path, start..end));
                match read.await.ok()? {
                    Ok(bytes) => (Some(permit), Bytes::from(bytes)),
                    Err(error) => {
                        tracing::error!("{error}");
                        return None;
                    }
                }
            }
        };
        let sent = bytes.len();
        timeout(CHUNK, send.write_chunk(bytes)).await.ok()?.ok()?;
        link.shared.coordinator.metrics().sent(sent);
        start = end;
    }
    Some(())
}
