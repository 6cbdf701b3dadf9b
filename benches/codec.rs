//! Frames of the worker protocol: what one costs to write and to read, by size.

use std::hint::black_box;

use bytes::BytesMut;
use chatfn::worker::FrameCodec;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio_util::codec::{Decoder, Encoder};

fn frames(criterion: &mut Criterion) {
    for size in [200usize, 4 << 10, 256 << 10] {
        let body = vec![b'x'; size];
        let mut group = criterion.benchmark_group("frame");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("encode", size), &body, |bencher, body| {
            let mut codec = FrameCodec::new(size);
            let mut buffer = BytesMut::new();
            bencher.iter(|| {
                buffer.clear();
                codec.encode(black_box(body), &mut buffer).expect("fits");
            });
        });
        group.bench_with_input(BenchmarkId::new("decode", size), &body, |bencher, body| {
            let mut codec = FrameCodec::new(size);
            let mut wire = BytesMut::new();
            codec.encode(body, &mut wire).expect("fits");
            bencher.iter(|| codec.decode(&mut black_box(wire.clone())).expect("valid"));
        });
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
