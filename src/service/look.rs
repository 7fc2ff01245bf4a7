//! What there is: `info`, `list`, `tree`, `diff`.
//!
//! Refuses to change anything. Invariant: takes no lock, so that it answers while others work for minutes.

use super::engine::Engine;
use super::{
    AttachInfo, DeltaInfo, Diff, DiffExtent, DiffReply, DmInfo, ErrorKind, HeadInfo, HistoryInfo, Info, InfoReply, ListEntry, ListReply,
    PublishedInfo, ServiceError, SnapshotInfo, TreeDelta, TreeReply, Unreadable,
};
use crate::attach::{self, AttachState, Condition, DeviceTable};
use crate::chain::{ChainMap, Change, Source, diff, union};
use crate::format::head::HeadBounds;
use crate::ids::{Digest, ImageId, ImageName};
use crate::kernel::dm::SnapshotStatus;
use crate::store::{HeadRecord, ImageRecord, ObjectInfo, ObjectKind};
use crate::sys;
use crate::units::{Bytes, DiskChunk, Sectors};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

impl Engine {
    pub(super) fn info(&self, ask: Info) -> Result<InfoReply, ServiceError> {
        let record = self.store.image(&ask.name)?;
        let attached = attach::state(&self.store, record.id())?.filter(|state| state.condition == Condition::Attached);
        let dm = match ask.dm {
            true => Some(attach::tables(&self.store, record.id())?.into_iter().map(dm_info).collect()),
            false => None,
        };
        let chain = record
            .chain
            .iter()
            .map(|digest| self.delta_info(digest))
            .collect::<Result<_, _>>()?;
        let head = record.head.map(|head| HeadInfo {
            stored_bytes: allocated(&self.store.head_path(&record.name)),
            chunk_size_bytes: head.chunk_size,
            smallest_size_bytes: head.smallest_size,
            limit_bytes: head.limit_bytes,
            reserve: head.reserve,
        });
        let next_head = Some(record.next_head).filter(|next| record.head.is_none() && *next != HeadBounds::default());
        let published = record.published.map(|published| PublishedInfo {
            link: super::publish::link_of(&record.name, &published),
            manifest_sha256: published.manifest,
            info_hash: published.info_hash,
        });
        let history = record.history.iter().map(|line| HistoryInfo {
            time_unix_seconds: line.time_unix_seconds,
            verb: line.verb.clone(),
            detail: line.detail.clone(),
        });
        Ok(InfoReply {
            virtual_size_bytes: record.virtual_size,
            file_system: record.file_system.clone(),
            chain,
            head,
            attached: attached.and_then(attach_info).map(Box::new),
            next_head,
            published,
            history: history.collect(),
            dm,
            name: record.name,
        })
    }

    fn delta_info(&self, digest: &Digest) -> Result<DeltaInfo, ServiceError> {
        let file = self.store.open_object(digest)?;
        let meta = file
            .metadata()
            .map_err(|error| super::mount::failed("look at object", Path::new(&digest.to_string()), &error))?;
        let description = self.store.description(digest)?;
        Ok(DeltaInfo {
            digest: *digest,
            stored_bytes: Bytes(meta.blocks() * 512),
            virtual_size_bytes: description.virtual_size_bytes,
            chunk_size_bytes: description.chunk_size_bytes,
            images: meta.nlink().saturating_sub(1),
            verity_enforced: sys::verity::is_enforced(&file),
        })
    }

    pub(super) fn list(&self) -> Result<ListReply, ServiceError> {
        let listing = self.store.images()?;
        let mut attached = self.attached()?;
        let sizes = self.object_sizes()?;
        let images = listing.images.into_iter().map(|record| {
            let state = attached.remove(&record.id());
            let sealed: u64 = record
                .chain
                .iter()
                .filter_map(|digest| sizes.get(digest))
                .map(|info| info.allocated.0)
                .sum();
            let head = record.head.map_or(0, |_| allocated(&self.store.head_path(&record.name)).0);
            ListEntry {
                virtual_size_bytes: record.virtual_size,
                stored_bytes: Bytes(sealed + head),
                deltas: record.chain.len() as u64,
                dir: state.as_ref().and_then(|state| state.mounts.last().cloned()),
                mode: state.as_ref().map(|state| state.mode),
                snapshot: state.as_ref().and_then(|state| state.snapshot).map(|status| word(status).into()),
                device: state.and_then(|state| state.device),
                published: record.published.is_some(),
                name: record.name,
            }
        });
        let unreadable = listing.unreadable.into_iter().map(|(path, error)| Unreadable {
            path,
            why: ServiceError::from(error).to_string(),
        });
        Ok(ListReply {
            images: images.collect(),
            unreadable: unreadable.collect(),
        })
    }

    pub(super) fn tree(&self) -> Result<TreeReply, ServiceError> {
        let sizes = self.object_sizes()?;
        let images = self.store.images()?.images;
        let mut tops: BTreeMap<Digest, Vec<ImageName>> = BTreeMap::new();
        for image in &images {
            if let Some(top) = image.chain.last() {
                tops.entry(*top).or_default().push(image.name.clone());
            }
        }
        let mut parents: BTreeMap<Digest, Digest> = match self.look_up(|catalog| catalog.objects()) {
            Ok(rows) => rows.iter().map(|row| (row.digest, row.parent)).collect(),
            // A daemon has it open, and whoever asks us did not want to ask that: the files say the same.
            Err(busy) if busy.kind == ErrorKind::InUse => {
                let parent = |digest: &Digest| Some((*digest, self.store.description(digest).ok()?.parent));
                sizes.keys().filter_map(parent).collect()
            }
            Err(error) => return Err(error),
        };
        lay_on_stand_ins(&mut parents, &images);
        let order = parents_first(&parents);
        let known = order.into_iter().filter_map(|digest| Some((digest, sizes.get(&digest)?)));
        let deltas = known.map(|(digest, info)| TreeDelta {
            digest,
            parent: parents.get(&digest).copied().filter(|parent| *parent != Digest::NONE),
            stored_bytes: info.allocated,
            images: tops.remove(&digest).unwrap_or_default(),
        });
        Ok(TreeReply { deltas: deltas.collect() })
    }

    pub(super) fn diff(&self, ask: Diff) -> Result<DiffReply, ServiceError> {
        let a = self.store.image(&ask.a)?;
        let changes = match &ask.b {
            None => self.own_changes(&a)?,
            Some(name) => {
                let b = self.store.image(name)?;
                let sealed = diff(&self.map(&a)?, &self.map(&b)?);
                union(&union(&sealed, &self.head_changes(&a)?), &self.head_changes(&b)?)
            }
        };
        let extents: Vec<DiffExtent> = changes
            .iter()
            .map(|change| DiffExtent {
                offset_bytes: change.start,
                length_bytes: Bytes(change.end.0 - change.start.0),
            })
            .collect();
        let sum_bytes = Bytes(extents.iter().map(|extent| extent.length_bytes.0).sum());
        Ok(DiffReply {
            a: ask.a,
            b: ask.b,
            extents,
            sum_bytes,
        })
    }

    /// What the head changes; without a head, what the newest delta does.
    fn own_changes(&self, record: &ImageRecord) -> Result<Vec<Change>, ServiceError> {
        if record.head.is_some() {
            return self.head_changes(record);
        }
        let mut below = record.clone();
        below.chain.pop();
        Ok(diff(&self.map(&below)?, &self.map(record)?))
    }

    fn head_changes(&self, record: &ImageRecord) -> Result<Vec<Change>, ServiceError> {
        let Some(HeadRecord { smallest_size, .. }) = record.head else {
            return Ok(Vec::new());
        };
        let head = self.open_head(&record.name)?;
        let chunk = head.chunk_size();
        let end = |disk: DiskChunk| chunk.disk_offset(DiskChunk(disk.0 + 1)).unwrap_or(record.virtual_size);
        let changes: Vec<Change> = head
            .exceptions()
            .iter()
            .filter_map(|exception| Some(chunk.disk_offset(exception.disk)?..end(exception.disk).min(record.virtual_size)))
            .collect();
        // What the chain has there was cut off once.
        let map = self.map(record)?;
        let cut = map.segments(smallest_size..record.virtual_size);
        let cut: Vec<Change> = cut
            .filter(|segment| segment.source != Source::Zero)
            .map(|segment| segment.at..segment.end())
            .collect();
        Ok(union(&changes, &cut))
    }

    fn map(&self, record: &ImageRecord) -> Result<ChainMap, ServiceError> {
        Ok(self.disk_files(record, true).chain()?.into_map())
    }

    /// What is attached.
    fn attached(&self) -> Result<BTreeMap<ImageId, AttachState>, ServiceError> {
        let states = attach::states(&self.store)?;
        let attached = states.into_iter().filter(|state| state.condition == Condition::Attached);
        Ok(attached.map(|state| (state.image, state)).collect())
    }

    pub(super) fn object_sizes(&self) -> Result<BTreeMap<Digest, ObjectInfo>, ServiceError> {
        let objects = self.store.objects()?;
        let deltas = objects.into_iter().filter_map(|info| match info.kind {
            ObjectKind::Delta(digest) => Some((digest, info)),
            ObjectKind::Manifest(_) => None,
        });
        Ok(deltas.collect())
    }
}

fn attach_info(state: AttachState) -> Option<AttachInfo> {
    Some(AttachInfo {
        device: state.device?,
        dir: state.mounts.last().cloned(),
        read_only: state.read_only,
        mode: state.mode,
        why: state.why,
        snapshot: state.snapshot.map(snapshot_info),
    })
}

fn snapshot_info(status: SnapshotStatus) -> SnapshotInfo {
    let (used, total, metadata) = match status {
        SnapshotStatus::Used { used, total, metadata } => (used, total, metadata),
        _ => (0, 0, 0),
    };
    let bytes = |sectors| Sectors(sectors).bytes().unwrap_or_default();
    SnapshotInfo {
        state: word(status).into(),
        used_bytes: bytes(used),
        total_bytes: bytes(total),
        metadata_bytes: bytes(metadata),
    }
}

fn word(status: SnapshotStatus) -> &'static str {
    match status {
        SnapshotStatus::Used { .. } => "ok",
        SnapshotStatus::Invalid => "invalid",
        SnapshotStatus::Overflow => "overflow",
        SnapshotStatus::MergeFailed => "merge-failed",
        SnapshotStatus::Unknown => "unknown",
    }
}

fn dm_info(device: DeviceTable) -> DmInfo {
    DmInfo {
        name: device.name,
        uuid: device.uuid,
        device: device.device,
        read_only: device.read_only,
        table: device.table.to_string(),
    }
}

pub(super) fn allocated(path: &Path) -> Bytes {
    Bytes(path.metadata().map_or(0, |meta| meta.blocks() * 512))
}

/// On a flattened chain a delta lies on one that stands for its parent: so it is shown, unless some image still has it on the parent itself.
fn lay_on_stand_ins(parents: &mut BTreeMap<Digest, Digest>, images: &[ImageRecord]) {
    let pairs = || {
        images
            .iter()
            .flat_map(|image| image.chain.windows(2).map(|pair| (pair[0], pair[1])))
    };
    let as_made: BTreeSet<Digest> = pairs()
        .filter(|(below, above)| parents.get(above) == Some(below))
        .map(|(_, above)| above)
        .collect();
    for (below, above) in pairs().filter(|(_, above)| !as_made.contains(above)) {
        parents.entry(above).and_modify(|parent| *parent = below);
    }
}

/// Each delta after its parent, siblings by digest; what names itself as an ancestor, as damaged descriptions could, comes last.
fn parents_first(parents: &BTreeMap<Digest, Digest>) -> Vec<Digest> {
    let mut children: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for (digest, parent) in parents {
        let above = if parents.contains_key(parent) { *parent } else { Digest::NONE };
        children.entry(above).or_default().push(*digest);
    }
    let mut order = Vec::with_capacity(parents.len());
    let mut seen = BTreeSet::new();
    let mut next = vec![Digest::NONE];
    while let Some(digest) = next.pop() {
        if digest != Digest::NONE && seen.insert(digest) {
            order.push(digest);
        }
        next.extend(children.remove(&digest).unwrap_or_default().into_iter().rev());
    }
    order.extend(parents.keys().filter(|digest| !seen.contains(digest)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_their_children_and_a_circle_ends() {
        let id = |n: u8| Digest([n; 32]);
        let parents = BTreeMap::from([
            (id(1), id(9)),
            (id(2), id(3)),
            (id(3), Digest::NONE),
            (id(5), id(6)),
            (id(6), id(5)),
            (id(9), Digest::NONE),
        ]);
        let order = parents_first(&parents);
        let place = |n| order.iter().position(|d| *d == id(n)).unwrap();
        assert_eq!(order.len(), 6);
        assert!(place(9) < place(1) && place(3) < place(2), "{order:?}");
    }
    #[test]
    fn a_delta_lies_on_what_stands_for_its_parent_where_nobody_has_the_parent() {
        let id = |n: u8| Digest([n; 32]);
        let image = |name: &str, chain: &[u8]| {
            let mut record = ImageRecord::new(ImageName::new(name).unwrap(), Bytes(512), "none");
            record.chain = chain.iter().map(|n| id(*n)).collect();
            record
        };
        let made = BTreeMap::from([(id(1), Digest::NONE), (id(2), id(1)), (id(3), id(2)), (id(9), Digest::NONE)]);
        let mut parents = made.clone();
        lay_on_stand_ins(&mut parents, &[image("flat", &[9, 3])]);
        assert_eq!((parents[&id(3)], parents[&id(2)]), (id(9), id(1)));
        let mut parents = made.clone();
        lay_on_stand_ins(&mut parents, &[image("flat", &[9, 3]), image("old", &[1, 2, 3])]);
        assert_eq!(parents, made);
    }
}
