//! The replies: one struct per verb, pinned in golden files, as scripts read them.
//!
//! Refuses to know how they are shown. Invariant: a field's unit ends its name.

use super::Mode;
use crate::format::head::HeadBounds;
use crate::ids::{Digest, ImageName, InfoHash, Sha256};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

macro_rules! replies {
    ($($(#[$doc:meta])* $Name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $Name { $($(#[$field_doc])* pub $field: $type,)* }
    )*};
}

replies! {
    CreateReply { name: ImageName, virtual_size_bytes: Bytes, file_system: String, took_ms: u64, }
    ImportReply {
        name: ImageName,
        digest: Digest,
        virtual_size_bytes: Bytes,
        stored_bytes: Bytes,
        file_system: String,
        /// Files, directories and the like; absent for a raw disk.
        entries: Option<u64>,
        parts: ImportParts,
    }
    ImportParts { write_ms: u64, seal_ms: u64, hash_ms: u64, sync_ms: u64, }
    CloneReply {
        name: ImageName,
        source: ImageName,
        deltas: u64,
        /// What the source's head takes, which is not in the clone.
        left_out_bytes: Bytes,
        took_us: u64,
    }
    MountReply { name: ImageName, device: PathBuf, dir: PathBuf, read_only: bool, mode: Mode, took_ms: u64, }
    UmountReply { name: ImageName, dir: PathBuf, }
    AttachReply { name: ImageName, device: PathBuf, read_only: bool, mode: Mode, took_ms: u64, }
    DetachReply { name: ImageName, device: PathBuf, }
    CommitReply {
        name: ImageName,
        /// Of the new delta; absent when the head held no change.
        digest: Option<Digest>,
        /// The file's size.
        delta_bytes: Bytes,
        /// Disk bytes that differ from the parent.
        changed_bytes: Bytes,
        /// In the image's chain now.
        deltas: u64,
        /// Whether they are so many that `flatten` would make it attach faster.
        flatten_proposed: bool,
        took_ms: u64,
    }
    FlattenReply {
        name: ImageName,
        /// Of the new base; absent when there was nothing to do.
        digest: Option<Digest>,
        replaced_deltas: u64,
        /// Their files' sizes.
        replaced_bytes: Bytes,
        /// The new file's size.
        delta_bytes: Bytes,
        /// In the image's chain now.
        deltas: u64,
        /// Whether a link was withdrawn that had been published of the old chain.
        unpublished: bool,
        took_ms: u64,
    }
    ResizeReply {
        name: ImageName,
        old_size_bytes: Bytes,
        virtual_size_bytes: Bytes,
        file_system: String,
        /// The smallest disk that holds what is in its file system; told where it was asked for, to shrink an ext4.
        minimum_bytes: Option<Bytes>,
        limit_bytes: Option<Bytes>,
        reserve: bool,
        took_ms: u64,
    }
    DiffReply { a: ImageName, b: Option<ImageName>, extents: Vec<DiffExtent>, sum_bytes: Bytes, }
    DiffExtent { offset_bytes: Bytes, length_bytes: Bytes, }
    ExportReply {
        name: ImageName,
        target: PathBuf,
        written_bytes: Bytes,
        /// Absent for a raw disk.
        entries: Option<u64>,
        took_ms: u64,
    }
    InfoReply {
        name: ImageName,
        virtual_size_bytes: Bytes,
        file_system: String,
        /// Sealed deltas, oldest first.
        chain: Vec<DeltaInfo>,
        head: Option<HeadInfo>,
        attached: Option<Box<AttachInfo>>,
        /// What was said of the head that is made next, while there is none.
        next_head: Option<HeadBounds>,
        published: Option<PublishedInfo>,
        history: Vec<HistoryInfo>,
        /// The lowest first; absent unless asked for.
        dm: Option<Vec<DmInfo>>,
    }
    DeltaInfo {
        digest: Digest,
        stored_bytes: Bytes,
        virtual_size_bytes: Bytes,
        chunk_size_bytes: Bytes,
        /// How many images of this store have it.
        images: u64,
        /// Whether the host's file system checks it by fs-verity.
        verity_enforced: bool,
    }
    AttachInfo {
        device: PathBuf,
        dir: Option<PathBuf>,
        read_only: bool,
        mode: Mode,
        /// Why in this mode; absent if nothing remembers it.
        why: Option<String>,
        /// How full the head is, by the kernel's account; absent in user mode and without a head.
        snapshot: Option<SnapshotInfo>,
    }
    SnapshotInfo {
        /// `ok`, `overflow` (full: no more writes until it is attached again, larger), `invalid` (see check), or the kernel's word.
        state: String,
        used_bytes: Bytes,
        total_bytes: Bytes,
        metadata_bytes: Bytes,
    }
    /// A device-mapper device: `dmsetup create NAME --uuid UUID --table TABLE` makes it.
    DmInfo { name: String, uuid: String, device: String, read_only: bool, table: String, }
    HeadInfo {
        stored_bytes: Bytes,
        chunk_size_bytes: Bytes,
        smallest_size_bytes: Bytes,
        /// The most that its file may take; absent: what the disk needs.
        limit_bytes: Option<Bytes>,
        /// Whether it has all of that space already.
        reserve: bool,
    }
    PublishedInfo { link: String, manifest_sha256: Sha256, info_hash: InfoHash, }
    HistoryInfo { time_unix_seconds: u64, verb: String, detail: String, }
    ListReply {
        images: Vec<ListEntry>,
        /// Image directories that cannot be read.
        unreadable: Vec<Unreadable>,
    }
    ListEntry {
        name: ImageName,
        virtual_size_bytes: Bytes,
        /// All its deltas and its head, shared ones included.
        stored_bytes: Bytes,
        deltas: u64,
        device: Option<PathBuf>,
        dir: Option<PathBuf>,
        mode: Option<Mode>,
        /// Of an attached image's head, as in `info`; absent where nothing is to be said.
        snapshot: Option<String>,
        published: bool,
    }
    Unreadable { path: PathBuf, why: String, }
    TreeReply { deltas: Vec<TreeDelta>, }
    /// A delta of the store; parents come before their children.
    TreeDelta {
        digest: Digest,
        /// Absent for a base.
        parent: Option<Digest>,
        stored_bytes: Bytes,
        /// The images whose newest delta this is.
        images: Vec<ImageName>,
    }
    CheckReply {
        images: u64,
        objects: u64,
        read_bytes: Bytes,
        findings: Vec<CheckFinding>,
        rebuilt: Option<Rebuilt>,
    }
    CheckFinding {
        path: PathBuf,
        /// One word to match on, as in `duplicate-exception`.
        kind: String,
        area: Option<u64>,
        exception: Option<u64>,
        offset_bytes: Option<Bytes>,
        text: String,
        /// It was so, and is not any more.
        repaired: bool,
    }
    /// What the catalogue holds after `--rebuild`.
    Rebuilt { images: u64, objects: u64, }
    RenameReply { from: ImageName, to: ImageName, }
    RmReply {
        name: ImageName,
        dry_run: bool,
        /// Deltas that only this image had, or has: `gc` removes them.
        unreferenced_objects: u64,
        unreferenced_bytes: Bytes,
    }
    GcReply {
        dry_run: bool,
        removed: Vec<GcObject>,
        /// What had come of pulls that were given up.
        parts: Vec<GcPart>,
        /// As which a pull counts when nothing has come to it for so long.
        given_up_after_seconds: u64,
        freed_bytes: Bytes,
        kept_objects: u64,
    }
    GcPart { path: PathBuf, stored_bytes: Bytes, }
    GcObject { digest: Digest, stored_bytes: Bytes, }
    PublishReply {
        name: ImageName,
        link: String,
        info_hash: InfoHash,
        manifest_sha256: Sha256,
        deltas: u64,
        total_bytes: Bytes,
        /// False when no daemon runs: start `blockbtd` to serve it.
        seeding: bool,
        /// Where one runs, and has no swarm.
        not_seeding_because: Option<String>,
    }
    PullReply {
        name: ImageName,
        deltas: u64,
        /// Those the store had already.
        skipped_deltas: u64,
        total_bytes: Bytes,
        fetched_bytes: Bytes,
        took_ms: u64,
    }
    PeersReply { objects: Vec<PeersObject>, }
    PeersObject {
        /// `delta`, `meta` or `manifest`.
        kind: String,
        /// Digest or SHA-256.
        id: String,
        info_hash: InfoHash,
        size_bytes: Bytes,
        have_bytes: Bytes,
        /// To all peers, also those that are gone.
        sent_bytes: Bytes,
        peers: Vec<Peer>,
    }
    Peer {
        address: SocketAddr,
        /// `dht`, `link`, `incoming` ...
        found_by: String,
        received_bytes: Bytes,
        sent_bytes: Bytes,
        pieces: u64,
    }
}
