use std::fs;

use super::super::s3::{S3Server, SECRET_KEY};
use super::super::testing::{PART_BYTES, remote};
use super::*;

fn blob_of(bytes: &[u8]) -> Blob {
    let hash = blake3::hash(bytes).to_hex().to_string();
    Blob { hash, size_bytes: bytes.len() as u64, unpacked_bytes: 0, entries: 0 }
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("temp file");
    fs::write(file.path(), bytes).expect("write");
    file
}

async fn fetched(remote: &Remote, blob: &Blob) -> Result<Vec<u8>, RemoteError> {
    let into = tempfile::NamedTempFile::new().expect("temp file");
    remote.fetch(blob, into.path()).await?;
    Ok(fs::read(into.path()).expect("read"))
}

#[tokio::test]
async fn an_object_is_written_once_and_read_back_whatever_its_size() {
    let server = S3Server::start();
    let remote = remote(&server, SECRET_KEY);
    let part = usize::try_from(PART_BYTES).expect("small");
    let large = usize::try_from(2 * super::PART_BYTES + 1).expect("small");
    for size in [0, 1, part, 2 * part, 7 * part + 5, large] {
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let (blob, packed) = (blob_of(&bytes), file(&bytes));
        assert!(!remote.has(&blob).await.expect("looks"));
        for _ in 0..2 {
            remote.put(packed.path(), &blob).await.expect("writes, and again");
        }
        assert!(remote.has(&blob).await.expect("looks"));
        assert_eq!(fetched(&remote, &blob).await.expect("reads"), bytes, "{size}");
    }
    let listed: Vec<_> = remote.list().try_collect().await.expect("lists");
    assert_eq!(listed.len(), 6);
    let one = &listed[0];
    remote.remove(&one.hash).await.expect("removes");
    remote.remove(&one.hash).await.expect("removes what is gone");
    assert_eq!(remote.list().try_collect::<Vec<_>>().await.expect("lists").len(), 5);
}

#[tokio::test]
async fn a_damaged_object_is_not_taken_for_the_right_one() {
    let server = S3Server::start();
    let remote = remote(&server, SECRET_KEY);
    let bytes = vec![7; 100_000];
    let (blob, packed) = (blob_of(&bytes), file(&bytes));
    assert!(matches!(fetched(&remote, &blob).await, Err(RemoteError::Missing(_))));
    remote.put(packed.path(), &blob).await.expect("writes");
    let object = server.blobs("").pop().expect("an object");
    let mut changed = bytes.clone();
    changed[99_999] ^= 1;
    fs::write(&object, &changed).expect("write");
    assert!(
        matches!(fetched(&remote, &blob).await, Err(RemoteError::Damaged { problem, .. }) if problem.contains("not those"))
    );
    fs::write(&object, &bytes[1..]).expect("write");
    assert!(
        matches!(fetched(&remote, &blob).await, Err(RemoteError::Damaged { problem, .. }) if problem.contains("99999"))
    );
    // Half an object is replaced by whoever puts it again.
    remote.put(packed.path(), &blob).await.expect("writes");
    assert_eq!(fetched(&remote, &blob).await.expect("reads"), bytes);
    let small = blob_of(b"small");
    remote.put(file(b"small").path(), &small).await.expect("writes");
    let object = server.blobs("").into_iter().find(|path| path.to_string_lossy().contains(&small.hash)).expect("there");
    fs::write(&object, "sm").expect("write");
    remote.put(file(b"small").path(), &small).await.expect("writes");
    assert_eq!(fetched(&remote, &small).await.expect("reads"), b"small");
}

#[tokio::test]
async fn a_store_that_is_away_or_refuses_us_is_told_from_a_missing_object() {
    let mut server = S3Server::start();
    let (ours, wrong) = (remote(&server, SECRET_KEY), remote(&server, "not-the-secret"));
    ours.probe().await.expect("all is permitted");
    assert_eq!(ours.list().try_collect::<Vec<_>>().await.expect("lists").len(), 0, "the probe leaves nothing");
    let refused = wrong.probe().await.expect_err("no right to").to_string();
    assert!(refused.contains("cannot write an object") && refused.contains("AWS_SECRET_ACCESS_KEY"), "{refused}");
    assert!(!refused.contains("not-the-secret"), "{refused}");
    let blob = blob_of(b"x");
    assert!(matches!(fetched(&wrong, &blob).await, Err(RemoteError::Away { .. })));
    server.stop();
    assert!(matches!(fetched(&ours, &blob).await, Err(RemoteError::Away { .. })));
    assert!(matches!(ours.put(file(b"x").path(), &blob).await, Err(RemoteError::Away { .. })));
    server.restart();
    ours.put(file(b"x").path(), &blob).await.expect("it is back");
}

#[tokio::test]
async fn a_shared_directory_is_an_artifact_store_as_well() {
    let directory = tempfile::tempdir().expect("temp dir");
    let location = format!("file://{}/not/yet", directory.path().display());
    let remote = Remote::open(&location.parse().expect("a location")).expect("opens");
    remote.probe().await.expect("works");
    let bytes = vec![3; usize::try_from(2 * super::PART_BYTES + 1).expect("small")];
    for bytes in [&b"small"[..], &bytes] {
        let blob = blob_of(bytes);
        for _ in 0..2 {
            remote.put(file(bytes).path(), &blob).await.expect("writes");
        }
        assert_eq!(fetched(&remote, &blob).await.expect("reads"), bytes);
    }
    assert_eq!(remote.list().try_collect::<Vec<_>>().await.expect("lists").len(), 2);
}
