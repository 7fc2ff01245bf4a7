//! `check`: every delta, head and record held beside what it should be.
//!
//! Refuses to mend anything but the catalogue, which is made from the rest, and heads of which nothing is lost. Invariant: a finding hides no
//! other, and what was mended is told as a finding, too.

use super::engine::Engine;
use super::{Check, CheckFinding, CheckReply, Progress, Rebuilt, ServiceError};
use crate::blockio::FileIo;
use crate::format::check::{self, Expected, Finding, FindingKind, Kind};
use crate::format::head::{self, Head};
use crate::format::meta::Meta;
use crate::ids::Digest;
use crate::store::{HistoryEntry, ImageRecord, Problem, StoreError};
use crate::units::Bytes;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

impl Engine {
    pub(super) fn check(&self, ask: Check, progress: &dyn Progress) -> Result<CheckReply, ServiceError> {
        let mut findings = Vec::new();
        let (images, objects) = match &ask.name {
            Some(name) => {
                let record = self.store.image(name)?;
                let mut problems = Vec::new();
                self.store.image_problems(&record, &mut problems);
                findings.extend(problems.into_iter().map(|problem| self.problem(problem)));
                let objects = record.chain.iter().copied().collect();
                (vec![record], objects)
            }
            None => {
                findings.extend(self.store.problems()?.into_iter().map(|problem| self.problem(problem)));
                let all: BTreeSet<Digest> = self.object_sizes()?.into_keys().collect();
                (self.store.images()?.images, all)
            }
        };
        let mut read = Bytes::ZERO;
        for digest in &objects {
            self.check_object(digest, &mut read, progress, &mut findings);
        }
        for record in &images {
            self.check_chain(record, &mut findings);
            if record.head.is_some() {
                self.check_head(record, &ask, progress, &mut findings)?;
            }
        }
        let rebuilt = match ask.rebuild {
            true => Some(self.rebuild()?),
            false => None,
        };
        Ok(CheckReply {
            images: images.len() as u64,
            objects: objects.len() as u64,
            read_bytes: read,
            findings,
            rebuilt,
        })
    }

    fn check_object(&self, digest: &Digest, read: &mut Bytes, progress: &dyn Progress, findings: &mut Vec<CheckFinding>) {
        let path = self.store.object_paths(digest).delta;
        let file = match self.store.open_object(digest) {
            Ok(file) => file,
            // Told as a problem of the images that lack it.
            Err(StoreError::NoObject { .. }) => return,
            Err(error) => return findings.push(unreadable(path, error.into())),
        };
        let len = file.metadata().map_or(0, |meta| meta.len());
        let meta = self.store.meta(digest).map_err(ServiceError::from);
        let meta = meta.and_then(|bytes| Ok(Meta::parse(&bytes)?));
        let units = match &meta {
            Ok(meta) => Some(meta.units.as_slice()),
            Err(error) => {
                findings.push(unreadable(self.store.object_paths(digest).meta, error.clone()));
                None
            }
        };
        let step = format!("check {}", &digest.to_string()[..12]);
        let expected = Expected { digest: *digest, units };
        let mut sink = |finding| findings.push(of_delta(&path, finding));
        check::check_deep(
            &FileIo(file),
            expected,
            &mut |done: Bytes| progress.update(&step, done.0, Some(len)),
            &mut sink,
        );
        *read = Bytes(read.0 + len);
    }

    fn check_chain(&self, record: &ImageRecord, findings: &mut Vec<CheckFinding>) {
        if let Err(error) = self.disk_files(record, true).chain() {
            let dir = self.store.image_dir(record.id());
            findings.push(CheckFinding {
                kind: "chain".into(),
                ..unreadable(dir, error.into())
            });
        }
    }

    /// Errors: [`ErrorKind::InUse`] when one image is to be repaired that somebody has. Of many, such are only looked at.
    fn check_head(
        &self,
        record: &ImageRecord,
        ask: &Check,
        progress: &dyn Progress,
        findings: &mut Vec<CheckFinding>,
    ) -> Result<(), ServiceError> {
        let mine = match ask.repair.then(|| self.store.lock_image(&record.name)) {
            // Taken, or removed, since they were listed.
            Some(Err(StoreError::InUse { .. } | StoreError::NotFound { .. })) if ask.name.is_none() => None,
            Some(lock) => Some(lock?),
            None => None,
        };
        let path = self.store.head_path(&record.name);
        let mut found = head_findings(&path);
        let can_be = |finding: &Finding| matches!(finding.kind, FindingKind::Invalidated | FindingKind::MissingArea);
        let mut why_not = None;
        let mut left = found.clone();
        if mine.is_some() && found.iter().any(can_be) {
            why_not = self.mend_head(record, &path, progress).err();
            left = head_findings(&path);
        }
        for finding in &mut found {
            let repaired = !left.contains(finding);
            match &why_not {
                Some(why) if finding.kind == FindingKind::Invalidated && repaired => {
                    finding.text += &format!("; valid again, and still to be tidied by the next attach: {why}");
                }
                Some(why) if finding.kind == FindingKind::Invalidated => finding.text = format!("not repaired: {why}"),
                _ if ask.repair && mine.is_none() && can_be(finding) => finding.text += ", when it is not attached any more",
                _ => {}
            }
            findings.push(CheckFinding {
                repaired,
                ..of_delta(&path, finding.clone())
            });
        }
        Ok(())
    }

    /// Brings back a head of which nothing is lost. The caller has the image locked.
    fn mend_head(&self, record: &ImageRecord, path: &Path, progress: &dyn Progress) -> Result<(), ServiceError> {
        let file = File::options().read(true).write(true).open(path);
        let file = FileIo(file.map_err(|error| super::mount::failed("open", path, &error))?);
        let total = file.0.metadata().map_or(0, |meta| meta.len());
        let mut done = 0;
        head::revalidate(&file, &mut |read: Bytes| {
            done += read.0;
            progress.update("read the head", done, Some(total));
        })?;
        let bounds = record.head.map(|head| head.bounds()).unwrap_or_default();
        // What the kernel had begun and not finished is cleared away, as always when a head is opened.
        Head::open_within(file, record.virtual_size, bounds)?;
        self.store.update_image(&record.name, |record| {
            record.add_history(HistoryEntry::now("repair", "head"));
        })?;
        tracing::info!(image = %record.name, "head repaired");
        Ok(())
    }

    fn rebuild(&self) -> Result<Rebuilt, ServiceError> {
        self.store.mark_index_stale()?;
        let (images, objects) = self.look_up(|catalog| Ok((catalog.images()?.len(), catalog.objects()?.len())))?;
        Ok(Rebuilt {
            images: images as u64,
            objects: objects as u64,
        })
    }

    fn problem(&self, problem: Problem) -> CheckFinding {
        let of_image = |name| self.store.image_dir(crate::ids::ImageId::of(name));
        let (kind, path) = match &problem {
            Problem::ImageUnreadable { dir, .. } => ("image-unreadable", dir.clone()),
            Problem::LinkMissing { image, .. } => ("link-missing", of_image(image)),
            Problem::ObjectMissing { image, .. } => ("object-missing", of_image(image)),
            Problem::LinkDiffers { image, .. } => ("link-differs", of_image(image)),
            Problem::HeadMissing { image } => ("head-missing", of_image(image)),
            Problem::MetaMissing { digest } => ("meta-missing", self.store.object_paths(digest).meta),
            Problem::DescriptionUnreadable { digest, .. } => ("description-unreadable", self.store.object_paths(digest).description),
            Problem::ObjectWritable { path, .. } => ("object-writable", path.clone()),
            Problem::Strange { path } => ("strange-file", path.clone()),
        };
        // The path is told beside it, and an error's causes are told, too.
        let text = match problem {
            Problem::ImageUnreadable { cause, .. } | Problem::DescriptionUnreadable { cause, .. } => ServiceError::from(cause).to_string(),
            Problem::ObjectWritable { mode, .. } => format!("mode {mode:04o}, want 0400"),
            Problem::Strange { .. } => "not a file of ours".into(),
            other => super::plain(&other.to_string()),
        };
        CheckFinding {
            path,
            kind: kind.into(),
            area: None,
            exception: None,
            offset_bytes: None,
            text,
            repaired: false,
        }
    }
}

/// What is wrong with a head; a missing one is told as a problem of the image.
fn head_findings(path: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Ok(file) = File::open(path) {
        check::check(&FileIo(file), Kind::Head, &mut |finding| found.push(finding));
    }
    found
}

fn of_delta(path: &Path, finding: Finding) -> CheckFinding {
    CheckFinding {
        path: path.into(),
        kind: finding.kind.name().into(),
        area: finding.area,
        exception: finding.exception,
        offset_bytes: finding.offset,
        text: super::plain(&finding.text),
        repaired: false,
    }
}

fn unreadable(path: PathBuf, error: ServiceError) -> CheckFinding {
    CheckFinding {
        path,
        kind: "unreadable".into(),
        area: None,
        exception: None,
        offset_bytes: None,
        text: error.to_string(),
        repaired: false,
    }
}
