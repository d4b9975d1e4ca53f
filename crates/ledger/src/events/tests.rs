//! Every event comes back as it went; no bytes make the reader panic.

use std::vec;

use super::*;

fn events() -> Vec<Event> {
    let block = Block {
        start: 1,
        bytes: 2,
        function: AllocFn::NewArray,
        allocated: vec![3, 4],
        freed: vec![],
        freed_by: AllocFn::Delete,
    };
    let error = |what| Error {
        number: 7,
        thread: 1,
        tid: 99,
        thread_name: "worker".into(),
        stack: vec![1, 2, 3],
        what,
        auxiliary: vec![("Address".into(), vec![]), ("Block".into(), vec![9])],
        subject: Some(Subject {
            address: 5,
            thread: 1,
            frames: vec![StackFrame { pc: 6, stack_pointer: 7, frame_pointer: 8, cfa: 9 }],
            is_within: true,
            object: Some((10, 11)),
        }),
    };
    vec![
        Event::Process(Process {
            pid: 1,
            parent_pid: 2,
            origin: 3,
            realtime_ns: 4,
            monotonic_ns: 5,
            executable: b"/x\xff".to_vec(),
            command_line: vec![b"a".to_vec(), vec![]],
        }),
        Event::Module(Module { number: 1, start: 2, end: 3, load_bias: 4, path: b"p".to_vec(), build_id: vec![5; 20] }),
        Event::ModuleGone { number: 6 },
        Event::Error(error(What::Memory {
            kind: ErrorKind::InvalidRead,
            access: 1,
            bytes: 8,
            address: 77,
            message: "Invalid".into(),
        })),
        Event::Error(error(What::Misuse {
            kind: MisuseKind::DoubleFree,
            function: AllocFn::Free,
            address: 5,
            block: Some(block),
        })),
        Event::Counts(vec![(1, 2), (3, 4)]),
        Event::Heap(Heap { live_bytes: 1, live_blocks: 2, allocations: 3, frees: 4, allocated_bytes: 5 }),
        Event::Check(Check {
            number: 1,
            trigger: CheckTrigger::Exit,
            status: 2,
            asked: asked::FULL | asked::ADDED,
            monotonic_ns: 3,
            check_ns: 4,
            blocks: 5,
            bytes: 6,
            root_bytes: 7,
            unreadable_bytes: 8,
            threads: 9,
            freeres: true,
            records: vec![Record {
                kind: LeakKind::PossiblyLost,
                heuristic: Some(Heuristic::NewArray),
                blocks: 1,
                bytes: 2,
                indirect_blocks: 3,
                indirect_bytes: 4,
                old_blocks: 5,
                old_bytes: 6,
                old_indirect_bytes: 7,
                addresses: [7, 8, 9],
                function: AllocFn::Calloc,
                stack: vec![10, 11],
            }],
        }),
        Event::Message { text: "hello".into(), stack: vec![1], by_program: true },
        Event::Ended { status: -11, monotonic_ns: 5 },
        Event::FatalSignal { signal: 11, code: 1, address: 0xdead, stack: vec![4] },
        Event::Failed("why".into()),
        Event::Forked,
        Event::Exec,
        Event::ExecFailed,
        Event::Descriptors(vec![Descriptor {
            number: 3,
            what: "file descriptor".into(),
            target: b"/etc".to_vec(),
            stack: vec![1],
        }]),
        Event::StringFunctions(vec![("strlen".into(), 5)]),
        Event::Question(Subject { address: 3, ..Subject::default() }),
        Event::Functions(vec![(AllocFn::Malloc, 1), (AllocFn::DeleteArray, 2)]),
    ]
}

#[test]
fn events_survive_a_round_trip() {
    let mut bytes = Vec::new();
    let events = events();
    for event in &events {
        encode(event, &mut bytes);
    }
    let (mut rest, mut read) = (&bytes[..], Vec::new());
    while let Some((frame, after)) = rest.split_first_chunk() {
        let (length, tag) = frame_of(*frame);
        let (payload, next) = after.split_at(length as usize);
        read.push(decode(tag, payload).unwrap());
        rest = next;
    }
    assert_eq!(read, events);
}

#[test]
fn no_bytes_make_the_reader_panic() {
    for event in events() {
        let mut bytes = Vec::new();
        encode(&event, &mut bytes);
        let (_, tag) = frame_of(*bytes.first_chunk().unwrap());
        let payload = &bytes[FRAME_BYTES as usize..];
        for length in 0..payload.len() {
            let _ = decode(tag, &payload[..length]);
        }
        for at in 0..payload.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = payload.to_vec();
                changed[at] = value;
                let _ = decode(tag, &changed);
            }
        }
        for other in 0..20 {
            let _ = decode(other, payload);
        }
    }
}
