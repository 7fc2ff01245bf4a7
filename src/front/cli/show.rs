//! Replies as text for people, and as JSON lines for scripts.
//!
//! Refuses to know where it is printed. Invariant: JSON has every field of the reply; the text is what a person needs of it.

use super::table::{Table, plain, short, time};
use crate::service::*;
use crate::units::Bytes;
use std::fmt::Write as _;
use std::path::Path;

/// One object per line: one line per image for `list`, one line else.
pub fn json_lines(reply: &Reply) -> Result<String, serde_json::Error> {
    let mut out = String::new();
    match reply {
        Reply::List(list) => {
            for image in &list.images {
                out += &serde_json::to_string(image)?;
                out.push('\n');
            }
            for unreadable in &list.unreadable {
                out += &serde_json::to_string(unreadable)?;
                out.push('\n');
            }
        }
        other => {
            out += &serde_json::to_string(other)?;
            out.push('\n');
        }
    }
    Ok(out)
}

/// The reply as a person reads it.
pub fn human(reply: &Reply) -> String {
    let mut out = String::new();
    match reply {
        Reply::Create(r) => line(&mut out, format!("{}: {} disk, {}", r.name, r.virtual_size_bytes, r.file_system)),
        Reply::Import(r) => import(&mut out, r),
        Reply::Clone(r) => {
            let (deltas, ms, us) = (count(r.deltas, "delta"), r.took_us / 1000, r.took_us % 1000);
            line(
                &mut out,
                format!("{}: clone of {}, {deltas} shared, {ms}.{us:03} ms", r.name, r.source),
            );
            if r.left_out_bytes > Bytes::ZERO {
                let left_out = format!("not in it: {} in {}'s head, which is not committed", r.left_out_bytes, r.source);
                line(&mut out, left_out);
            }
        }
        Reply::Mount(r) => line(
            &mut out,
            format!("{}{}", r.dir.display(), if r.read_only { " (read-only)" } else { "" }),
        ),
        Reply::Umount(r) => line(&mut out, format!("{}: unmounted from {}", r.name, r.dir.display())),
        Reply::Attach(r) => line(
            &mut out,
            format!("{}{}", r.device.display(), if r.read_only { " (read-only)" } else { "" }),
        ),
        Reply::Detach(r) => line(&mut out, format!("{}: detached from {}", r.name, r.device.display())),
        Reply::Commit(r) => commit(&mut out, r),
        Reply::Resize(r) => resize(&mut out, r),
        Reply::Flatten(r) => flatten(&mut out, r),
        Reply::Diff(r) => diff(&mut out, r),
        Reply::Export(r) => line(
            &mut out,
            format!(
                "{}: {} written to {} in {} ms",
                r.name,
                r.written_bytes,
                r.target.display(),
                r.took_ms
            ),
        ),
        Reply::Info(r) => info(&mut out, r),
        Reply::List(r) => list(&mut out, r),
        Reply::Tree(r) => tree(&mut out, r),
        Reply::Check(r) => check(&mut out, r),
        Reply::Rename(r) => line(&mut out, format!("{} is now {}", r.from, r.to)),
        Reply::Rm(r) => {
            line(
                &mut out,
                format!("{}: {}", r.name, if r.dry_run { "would be removed" } else { "removed" }),
            );
            if r.unreferenced_objects > 0 {
                let deltas = count(r.unreferenced_objects, "delta");
                let gc = if r.dry_run { "gc would then free" } else { "gc would free" };
                line(&mut out, format!("{gc} {} in {deltas}", r.unreferenced_bytes));
            }
        }
        Reply::Gc(r) => {
            r.removed
                .iter()
                .for_each(|object| line(&mut out, format!("{} {}", object.digest, object.stored_bytes)));
            r.parts
                .iter()
                .for_each(|part| line(&mut out, format!("{} {}", part.path.display(), part.stored_bytes)));
            let would = if r.dry_run { "would free" } else { "freed" };
            let parts = match r.parts.len() as u64 {
                0 => String::new(),
                n => format!(
                    " and {} of pulls to which nothing came for {} days",
                    count(n, "part"),
                    r.given_up_after_seconds / 86_400
                ),
            };
            let deltas = count(r.removed.len() as u64, "delta");
            line(
                &mut out,
                format!("{would} {} in {deltas}{parts}, {} kept", r.freed_bytes, r.kept_objects),
            );
        }
        Reply::Publish(r) => {
            line(&mut out, r.link.clone());
            match &r.not_seeding_because {
                Some(why) => line(&mut out, format!("nobody serves it yet: {why}")),
                None if !r.seeding => line(&mut out, "nobody serves it yet: start blockbtd".into()),
                None => {}
            }
        }
        Reply::Pull(r) => {
            let new = r.deltas.saturating_sub(r.skipped_deltas);
            line(
                &mut out,
                format!(
                    "{}: {} fetched in {}, {} here before, {} ms",
                    r.name,
                    r.fetched_bytes,
                    count(new, "delta"),
                    r.skipped_deltas,
                    r.took_ms
                ),
            );
        }
        Reply::Peers(r) => peers(&mut out, r),
    }
    out
}

/// `1 delta`, `2 deltas`.
fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn line(out: &mut String, text: String) {
    let _ = writeln!(out, "{}", plain(&text));
}

fn import(out: &mut String, r: &ImportReply) {
    let entries = r.entries.map(|entries| format!(", {entries} entries")).unwrap_or_default();
    line(
        out,
        format!(
            "{}: {} disk, {}{entries}, {} stored",
            r.name, r.virtual_size_bytes, r.file_system, r.stored_bytes
        ),
    );
    line(out, format!("delta {}", r.digest));
    let parts = &r.parts;
    line(
        out,
        format!(
            "write {} ms, seal {} ms, hash {} ms, sync {} ms",
            parts.write_ms, parts.seal_ms, parts.hash_ms, parts.sync_ms
        ),
    );
}

fn commit(out: &mut String, r: &CommitReply) {
    match r.digest {
        Some(digest) => {
            line(out, format!("{}: {} changed, sealed in {} ms", r.name, r.changed_bytes, r.took_ms));
            line(out, format!("delta {digest}, {}", r.delta_bytes));
        }
        None => line(out, format!("{}: nothing to commit", r.name)),
    }
    if r.flatten_proposed {
        let deltas = count(r.deltas, "delta");
        line(
            out,
            format!("chain has {deltas}: blockbt-ctl flatten {} would make it attach faster", r.name),
        );
    }
}

fn flatten(out: &mut String, r: &FlattenReply) {
    let deltas = count(r.deltas, "delta");
    let Some(digest) = r.digest else {
        return line(out, format!("{}: nothing to flatten, chain has {deltas}", r.name));
    };
    let old = count(r.replaced_deltas, "delta");
    line(
        out,
        format!(
            "{}: {old} of {} made into one in {} ms, chain has {deltas}",
            r.name, r.replaced_bytes, r.took_ms
        ),
    );
    line(out, format!("delta {digest}, {}", r.delta_bytes));
    if r.unpublished {
        line(out, "not published any more: its link was to the old chain".into());
    }
}

/// The kernel's word for a head that refuses writes, and what helps.
fn trouble(state: &str) -> String {
    match state {
        "overflow" => "overflow, it is full and refuses writes: umount, resize --limit, mount".into(),
        "invalid" => "invalid, the kernel gave it up: umount, check --repair, mount".into(),
        other => other.into(),
    }
}

fn diff(out: &mut String, r: &DiffReply) {
    let mut table = Table::new(&["OFFSET", "LENGTH"], &[0, 1]);
    for extent in &r.extents {
        table.row(vec![extent.offset_bytes.0.to_string(), extent.length_bytes.0.to_string()]);
    }
    if !r.extents.is_empty() {
        table.print(out);
    }
    line(out, format!("{} in {}", r.sum_bytes, count(r.extents.len() as u64, "extent")));
}

fn resize(out: &mut String, r: &ResizeReply) {
    let size = match r.old_size_bytes == r.virtual_size_bytes {
        true => format!("{}: {} disk", r.name, r.virtual_size_bytes),
        false => format!("{}: {} disk, was {}", r.name, r.virtual_size_bytes, r.old_size_bytes),
    };
    let head = match (r.limit_bytes, r.reserve) {
        (Some(limit), true) => format!(", head at most {limit}, reserved"),
        (Some(limit), false) => format!(", head at most {limit}"),
        (None, true) => ", head reserved".into(),
        (None, false) => String::new(),
    };
    line(out, format!("{size}, {}{head}, in {} ms", r.file_system, r.took_ms));
}

fn info(out: &mut String, r: &InfoReply) {
    line(out, format!("name       {}", r.name));
    line(out, format!("disk       {}, {}", r.virtual_size_bytes, r.file_system));
    match &r.attached {
        Some(attached) => {
            let dir = attached
                .dir
                .as_ref()
                .map(|dir| format!(" on {}", dir.display()))
                .unwrap_or_default();
            let mode = if attached.read_only { ", read-only" } else { "" };
            line(out, format!("attached   {}{dir}{mode}", attached.device.display()));
            if let Some(snapshot) = &attached.snapshot {
                // Of a head in trouble the kernel tells no figures.
                match snapshot.state.as_str() {
                    "ok" => line(out, format!("kernel     {} of {} used", snapshot.used_bytes, snapshot.total_bytes)),
                    state => line(out, format!("kernel     head in trouble: {}", trouble(state))),
                }
            }
            let why = attached.why.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
            line(out, format!("mode       {}{why}", attached.mode));
        }
        None => line(out, "attached   no".into()),
    }
    match &r.head {
        Some(head) => line(
            out,
            format!("head       {}{}", head.stored_bytes, room(head.limit_bytes, head.reserve)),
        ),
        None => {
            let next = r
                .next_head
                .map(|next| format!("; the next one{}", room(next.limit_bytes, next.reserve)));
            line(out, format!("head       none{}", next.unwrap_or_default()));
        }
    }
    if let Some(published) = &r.published {
        line(out, format!("published  {}", published.link));
    }
    out.push('\n');
    let mut table = Table::new(&["#", "DELTA", "STORED", "DISK", "IMAGES", "VERITY"], &[0, 2, 3, 4]);
    for (index, delta) in r.chain.iter().enumerate() {
        table.row(vec![
            index.to_string(),
            delta.digest.to_string(),
            delta.stored_bytes.to_string(),
            delta.virtual_size_bytes.to_string(),
            delta.images.to_string(),
            if delta.verity_enforced { "enforced" } else { "no" }.into(),
        ]);
    }
    table.print(out);
    if !r.history.is_empty() {
        out.push('\n');
    }
    for entry in &r.history {
        line(
            out,
            format!("{}  {}  {}", time(entry.time_unix_seconds), entry.verb, entry.detail)
                .trim_end()
                .into(),
        );
    }
    if let Some(devices) = &r.dm {
        tables(out, devices);
    }
}

/// As `dmsetup create` takes them, one after the other.
fn tables(out: &mut String, devices: &[DmInfo]) {
    for device in devices {
        let read_only = if device.read_only { " --readonly" } else { "" };
        out.push('\n');
        line(
            out,
            format!(
                "# {}: dmsetup create {} --uuid {}{read_only}",
                device.device, device.name, device.uuid
            ),
        );
        device.table.lines().for_each(|target| line(out, target.into()));
    }
}

/// What bounds a head.
fn room(limit: Option<Bytes>, reserve: bool) -> String {
    let limit = limit.map(|limit| format!(", at most {limit}")).unwrap_or_default();
    format!("{limit}{}", if reserve { ", reserved" } else { "" })
}

fn list(out: &mut String, r: &ListReply) {
    let path = |path: &Option<std::path::PathBuf>| path.as_deref().map_or("-".into(), |path: &Path| path.display().to_string());
    let mut table = Table::new(&["NAME", "DISK", "STORED", "DELTAS", "DEVICE", "MOUNTED ON"], &[1, 2, 3]);
    for image in &r.images {
        table.row(vec![
            image.name.to_string(),
            image.virtual_size_bytes.to_string(),
            image.stored_bytes.to_string(),
            image.deltas.to_string(),
            path(&image.device),
            path(&image.dir),
        ]);
    }
    table.print(out);
    for image in &r.images {
        if let Some(state) = image.snapshot.as_deref().filter(|state| *state != "ok") {
            line(out, format!("{}: its head is in trouble: {}", image.name, trouble(state)));
        }
    }
    for unreadable in &r.unreadable {
        line(out, format!("unreadable: {}: {}", unreadable.path.display(), unreadable.why));
    }
}

fn tree(out: &mut String, r: &TreeReply) {
    let is_here = |digest| r.deltas.iter().any(|delta| delta.digest == digest);
    let roots = r.deltas.iter().filter(|delta| delta.parent.is_none_or(|parent| !is_here(parent)));
    // A loop, not recursion, and each delta once: a chain may be thousands deep, and parents come from files.
    let mut todo: Vec<(usize, &TreeDelta)> = roots.map(|delta| (0, delta)).collect();
    todo.reverse();
    let mut seen = std::collections::BTreeSet::new();
    while let Some((depth, delta)) = todo.pop() {
        if !seen.insert(delta.digest) {
            continue;
        }
        let indent = if depth == 0 {
            String::new()
        } else {
            format!("{}└─ ", "   ".repeat(depth.min(40) - 1))
        };
        let names: Vec<String> = delta.images.iter().map(|name| name.to_string()).collect();
        line(
            out,
            format!("{indent}{} {}  {}", short(delta.digest), delta.stored_bytes, names.join(", "))
                .trim_end()
                .into(),
        );
        let children: Vec<_> = r.deltas.iter().filter(|child| child.parent == Some(delta.digest)).collect();
        todo.extend(children.into_iter().rev().map(|child| (depth + 1, child)));
    }
}

fn check(out: &mut String, r: &CheckReply) {
    for finding in &r.findings {
        let mut place = finding.path.display().to_string();
        for (word, number) in [
            ("area", finding.area),
            ("exception", finding.exception),
            ("offset", finding.offset_bytes.map(|at| at.0)),
        ] {
            if let Some(number) = number {
                let _ = write!(place, ", {word} {number}");
            }
        }
        let repaired = if finding.repaired { " (repaired)" } else { "" };
        line(out, format!("{place}: {}: {}{repaired}", finding.kind, finding.text));
    }
    if let Some(rebuilt) = &r.rebuilt {
        line(
            out,
            format!(
                "catalogue made anew: {}, {}",
                count(rebuilt.images, "image"),
                count(rebuilt.objects, "object")
            ),
        );
    }
    let repaired = r.findings.iter().filter(|finding| finding.repaired).count();
    let found = match (r.findings.len(), repaired) {
        (0, _) => "nothing wrong".into(),
        (all, 0) => count(all as u64, "finding"),
        (all, repaired) => format!("{}, {repaired} repaired", count(all as u64, "finding")),
    };
    line(
        out,
        format!(
            "{}, {}, {} read: {found}",
            count(r.images, "image"),
            count(r.objects, "object"),
            r.read_bytes
        ),
    );
}

fn peers(out: &mut String, r: &PeersReply) {
    for object in &r.objects {
        line(
            out,
            format!("{} {}  {} of {}", object.kind, object.id, object.have_bytes, object.size_bytes),
        );
        if object.peers.is_empty() {
            continue;
        }
        let mut table = Table::new(&["  PEER", "FOUND BY", "RECEIVED", "SENT", "PIECES"], &[2, 3, 4]);
        for peer in &object.peers {
            table.row(vec![
                format!("  {}", peer.address),
                peer.found_by.clone(),
                peer.received_bytes.to_string(),
                peer.sent_bytes.to_string(),
                peer.pieces.to_string(),
            ]);
        }
        table.print(out);
    }
}
