//! The JSON and the text of every reply, pinned.

#[path = "common/golden.rs"]
mod golden;

use blockbt::front::cli::{human, json_lines};
use blockbt::ids::{Digest, ImageName, InfoHash, Sha256};
use blockbt::service::*;
use blockbt::units::Bytes;

const A: Digest = Digest([0xaa; 32]);
const B: Digest = Digest([0xbb; 32]);
const HASH: InfoHash = InfoHash([0x11; 20]);
const SHA: Sha256 = Sha256([0x22; 32]);

fn name(text: &str) -> ImageName {
    ImageName::new(text).unwrap()
}

fn delta(digest: Digest) -> DeltaInfo {
    let stored = Bytes(123 << 20);
    DeltaInfo {
        digest,
        stored_bytes: stored,
        virtual_size_bytes: Bytes(10 << 30),
        chunk_size_bytes: Bytes(4096),
        images: 2,
        verity_enforced: digest == A,
    }
}

fn info() -> InfoReply {
    InfoReply {
        name: name("web"),
        virtual_size_bytes: Bytes(10 << 30),
        file_system: "ext4".into(),
        chain: vec![delta(A), delta(B)],
        head: Some(HeadInfo {
            stored_bytes: Bytes(5 << 20),
            chunk_size_bytes: Bytes(16384),
            smallest_size_bytes: Bytes(10 << 30),
            limit_bytes: Some(Bytes(2 << 30)),
            reserve: true,
        }),
        next_head: None,
        attached: Some(Box::new(AttachInfo {
            device: "/dev/loop7".into(),
            dir: Some("/mnt".into()),
            read_only: false,
            mode: Mode::Flat,
            why: Some("this kernel has device-mapper".into()),
            snapshot: Some(SnapshotInfo {
                state: "overflow".into(),
                used_bytes: Bytes(96 << 10),
                total_bytes: Bytes(1 << 20),
                metadata_bytes: Bytes(32 << 10),
            }),
        })),
        published: Some(PublishedInfo {
            link: "magnet:?xt=x".into(),
            manifest_sha256: SHA,
            info_hash: HASH,
        }),
        history: vec![HistoryInfo {
            time_unix_seconds: 1_780_000_000,
            verb: "commit".into(),
            detail: "perl added".into(),
        }],
        dm: Some(vec![DmInfo {
            name: "blockbt-0011-lower-22".into(),
            uuid: "BLOCKBT-0011-lower-22".into(),
            device: "253:3".into(),
            read_only: true,
            table: "0 8 linear 7:1 16\n8 8 zero\n".into(),
        }]),
    }
}

fn list() -> ListReply {
    let bare = ListEntry {
        name: name("debian"),
        virtual_size_bytes: Bytes(10 << 30),
        stored_bytes: Bytes(150 << 20),
        deltas: 1,
        device: None,
        dir: None,
        mode: None,
        snapshot: None,
        published: false,
    };
    let mounted = ListEntry {
        name: name("web"),
        device: Some("/dev/loop7".into()),
        dir: Some("/mnt".into()),
        mode: Some(Mode::Flat),
        snapshot: Some("overflow".into()),
        published: true,
        ..bare.clone()
    };
    let unreadable = Unreadable {
        path: "/var/lib/blockbt/images/00".into(),
        why: "image.json is empty".into(),
    };
    ListReply {
        images: vec![bare, mounted],
        unreadable: vec![unreadable],
    }
}

fn tree() -> TreeReply {
    let node = |digest, parent, images| TreeDelta {
        digest,
        parent,
        stored_bytes: Bytes(1 << 20),
        images,
    };
    TreeReply {
        deltas: vec![
            node(A, None, vec![name("debian"), name("fresh")]),
            node(B, Some(A), vec![name("web")]),
        ],
    }
}

fn check() -> CheckReply {
    let finding = CheckFinding {
        path: "/var/lib/blockbt/objects/aa/aa.delta".into(),
        kind: "duplicate-exception".into(),
        area: Some(1),
        exception: Some(7),
        offset_bytes: Some(Bytes(1_052_784)),
        text: "disk chunk 9 was named before".into(),
        repaired: false,
    };
    let repaired = CheckFinding {
        path: "/var/lib/blockbt/images/77/head.delta".into(),
        kind: "invalidated".into(),
        area: None,
        exception: None,
        offset_bytes: Some(Bytes(4)),
        text: "invalidated by the kernel".into(),
        repaired: true,
    };
    CheckReply {
        images: 2,
        objects: 3,
        read_bytes: Bytes(1 << 30),
        findings: vec![finding, repaired],
        rebuilt: Some(Rebuilt { images: 2, objects: 3 }),
    }
}

fn peers() -> PeersReply {
    let peer = Peer {
        address: "10.0.0.2:6981".parse().unwrap(),
        found_by: "dht".into(),
        received_bytes: Bytes(9 << 20),
        sent_bytes: Bytes(0),
        pieces: 36,
    };
    let (size_bytes, have_bytes) = (Bytes(20 << 20), Bytes(9 << 20));
    PeersReply {
        objects: vec![PeersObject {
            kind: "delta".into(),
            id: A.to_string(),
            info_hash: HASH,
            size_bytes,
            have_bytes,
            sent_bytes: Bytes(4096),
            peers: vec![peer],
        }],
    }
}

fn replies() -> Vec<(&'static str, Reply)> {
    let (web, debian) = (name("web"), name("debian"));
    let (disk, device) = (Bytes(10 << 30), std::path::PathBuf::from("/dev/loop7"));
    let parts = ImportParts {
        write_ms: 900,
        seal_ms: 300,
        hash_ms: 200,
        sync_ms: 100,
    };
    let extent = DiffExtent {
        offset_bytes: Bytes(4096),
        length_bytes: Bytes(8192),
    };
    let gone = GcObject {
        digest: A,
        stored_bytes: Bytes(5 << 20),
    };
    vec![
        (
            "create",
            Reply::Create(CreateReply {
                name: web.clone(),
                virtual_size_bytes: disk,
                file_system: "ext4".into(),
                took_ms: 80,
            }),
        ),
        (
            "import",
            Reply::Import(ImportReply {
                name: debian.clone(),
                digest: A,
                virtual_size_bytes: disk,
                stored_bytes: Bytes(150 << 20),
                file_system: "ext4".into(),
                entries: Some(9000),
                parts,
            }),
        ),
        (
            "clone",
            Reply::Clone(CloneReply {
                name: web.clone(),
                source: debian.clone(),
                deltas: 1,
                left_out_bytes: Bytes(64 << 10),
                took_us: 2_345,
            }),
        ),
        (
            "mount",
            Reply::Mount(MountReply {
                name: web.clone(),
                device: device.clone(),
                dir: "/mnt".into(),
                read_only: false,
                mode: Mode::Flat,
                took_ms: 60,
            }),
        ),
        (
            "umount",
            Reply::Umount(UmountReply {
                name: web.clone(),
                dir: "/mnt".into(),
            }),
        ),
        (
            "attach",
            Reply::Attach(AttachReply {
                name: web.clone(),
                device: device.clone(),
                read_only: true,
                mode: Mode::User,
                took_ms: 40,
            }),
        ),
        ("detach", Reply::Detach(DetachReply { name: web.clone(), device })),
        (
            "commit",
            Reply::Commit(CommitReply {
                name: web.clone(),
                digest: Some(B),
                delta_bytes: Bytes(21 << 20),
                changed_bytes: Bytes(20 << 20),
                deltas: 2,
                flatten_proposed: false,
                took_ms: 150,
            }),
        ),
        (
            "commit-deep",
            Reply::Commit(CommitReply {
                name: web.clone(),
                digest: Some(B),
                delta_bytes: Bytes(21 << 20),
                changed_bytes: Bytes(20 << 20),
                deltas: 40,
                flatten_proposed: true,
                took_ms: 150,
            }),
        ),
        (
            "commit-nothing",
            Reply::Commit(CommitReply {
                name: web.clone(),
                digest: None,
                delta_bytes: Bytes(0),
                changed_bytes: Bytes(0),
                deltas: 1,
                flatten_proposed: false,
                took_ms: 1,
            }),
        ),
        (
            "flatten",
            Reply::Flatten(FlattenReply {
                name: web.clone(),
                digest: Some(B),
                replaced_deltas: 32,
                replaced_bytes: Bytes(500 << 20),
                delta_bytes: Bytes(210 << 20),
                deltas: 3,
                unpublished: true,
                took_ms: 900,
            }),
        ),
        (
            "flatten-nothing",
            Reply::Flatten(FlattenReply {
                name: web.clone(),
                digest: None,
                replaced_deltas: 0,
                replaced_bytes: Bytes(0),
                delta_bytes: Bytes(0),
                deltas: 1,
                unpublished: false,
                took_ms: 1,
            }),
        ),
        (
            "diff",
            Reply::Diff(DiffReply {
                a: debian.clone(),
                b: Some(web.clone()),
                extents: vec![extent],
                sum_bytes: Bytes(8192),
            }),
        ),
        (
            "export",
            Reply::Export(ExportReply {
                name: web.clone(),
                target: "/tmp/web.tar".into(),
                written_bytes: Bytes(200 << 20),
                entries: Some(9100),
                took_ms: 700,
            }),
        ),
        ("info", Reply::Info(info())),
        ("list", Reply::List(list())),
        ("tree", Reply::Tree(tree())),
        ("check", Reply::Check(check())),
        (
            "resize",
            Reply::Resize(ResizeReply {
                name: web.clone(),
                old_size_bytes: disk,
                virtual_size_bytes: Bytes(5 << 30),
                file_system: "ext4".into(),
                minimum_bytes: Some(Bytes(1 << 30)),
                limit_bytes: None,
                reserve: false,
                took_ms: 300,
            }),
        ),
        (
            "resize-limit",
            Reply::Resize(ResizeReply {
                name: web.clone(),
                old_size_bytes: disk,
                virtual_size_bytes: disk,
                file_system: "ext4".into(),
                minimum_bytes: None,
                limit_bytes: Some(Bytes(2 << 30)),
                reserve: true,
                took_ms: 3,
            }),
        ),
        (
            "rename",
            Reply::Rename(RenameReply {
                from: web.clone(),
                to: name("web-old"),
            }),
        ),
        (
            "rm",
            Reply::Rm(RmReply {
                dry_run: false,
                name: web.clone(),
                unreferenced_objects: 1,
                unreferenced_bytes: Bytes(21 << 20),
            }),
        ),
        (
            "gc",
            Reply::Gc(GcReply {
                dry_run: true,
                removed: vec![gone],
                parts: vec![GcPart {
                    path: "/var/lib/blockbt/incoming/ab.part".into(),
                    stored_bytes: Bytes(1 << 20),
                }],
                given_up_after_seconds: 7 * 86_400,
                freed_bytes: Bytes(5 << 20),
                kept_objects: 2,
            }),
        ),
        (
            "publish",
            Reply::Publish(PublishReply {
                name: web.clone(),
                link: "magnet:?xt=urn:btih:11&x.bbt=22".into(),
                info_hash: HASH,
                manifest_sha256: SHA,
                deltas: 2,
                total_bytes: Bytes(171 << 20),
                seeding: false,
                not_seeding_because: None,
            }),
        ),
        (
            "pull",
            Reply::Pull(PullReply {
                name: web,
                deltas: 2,
                skipped_deltas: 1,
                total_bytes: Bytes(171 << 20),
                fetched_bytes: Bytes(21 << 20),
                took_ms: 900,
            }),
        ),
        ("peers", Reply::Peers(peers())),
    ]
}

#[test]
fn json_and_text_of_every_reply_are_as_pinned() {
    for (file, reply) in replies() {
        golden::check(&format!("json/{file}.json"), &json_lines(&reply).unwrap());
        golden::check(&format!("text/{file}.txt"), &human(&reply));
    }
}

#[test]
fn every_reply_survives_the_socket() {
    let pinned = replies();
    for verb in Request::VERBS {
        assert!(pinned.iter().any(|(file, _)| file == verb), "no reply of {verb} is pinned");
    }
    for (file, reply) in pinned {
        let verb = file.split('-').next().unwrap();
        assert_eq!(
            Reply::from_json(verb, serde_json::to_value(&reply).unwrap()).unwrap().unwrap(),
            reply
        );
    }
}

#[test]
fn findings_are_exit_code_five() {
    use blockbt::front::cli::{Exit, exit_of_reply};
    for (file, reply) in replies() {
        let want = if ["check", "list"].contains(&file) {
            Exit::Damaged
        } else {
            Exit::Done
        };
        assert_eq!(exit_of_reply(&reply), want, "{file}");
    }
}

#[test]
fn a_tree_that_loops_or_is_deep_prints_and_ends() {
    let digest = |n: u64| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Digest(bytes)
    };
    let node = |n, parent| TreeDelta {
        digest: digest(n),
        parent: Some(digest(parent)),
        stored_bytes: Bytes(0),
        images: vec![],
    };
    let looped = TreeReply {
        deltas: vec![node(1, 2), node(2, 1)],
    };
    human(&Reply::Tree(looped));
    let deep = TreeReply {
        deltas: (1..2000).map(|n| node(n, n - 1)).collect(),
    };
    assert_eq!(human(&Reply::Tree(deep)).lines().count(), 1999);
}
