//! A writable clone of a chain that is attached: made, mounted, unmounted, removed.

use super::snapshotter::Snapshotter;
use super::table::{Goal, Row, median};
use super::thin::{Pool, SCRATCH};
use super::tool::{self, Mounted, ms};
use super::{Bench, DEPTHS};

const ROUNDS: usize = 15;

pub fn rows(bench: &Bench) -> Vec<Row> {
    DEPTHS.map(|depth| row(bench, depth)).into()
}

fn row(bench: &Bench, depth: usize) -> Row {
    let pool = Pool::open(&bench.dir("thin"));
    let parent = format!("c{depth}");
    let mut snapshotter = Snapshotter::open(&pool, &bench.dir("thin"), "/mnt/at/lost".into());
    let [at_ours, at_thin, at_overlay] = ["ours", "thin", "overlay"].map(|name| bench.mount_point(name));
    bench.ours.clone_of(&parent, "keeper");
    bench.ours.attach("keeper", false);
    let mut parts = [(); 4].map(|()| Vec::new());
    let [mut ours, mut bare, mut thin, mut overlay] = [(); 4].map(|()| Vec::new());
    for round in 0..=ROUNDS {
        let took = [
            ms(|| bench.ours.clone_of(&parent, "clone")),
            ms(|| bench.ours.mount("clone", &at_ours)),
            ms(|| bench.ours.umount("clone")),
            ms(|| bench.ours.remove("clone")),
        ];
        let by_bare = ms(|| {
            pool.snapshot(SCRATCH, depth as u32 - 1);
            let device = pool.activate(SCRATCH);
            drop(Mounted::ext4(&device.path, &at_thin));
            drop(device);
            pool.delete(SCRATCH);
        });
        let by_thin = ms(|| {
            let device = snapshotter.prepare(SCRATCH, depth as u32 - 1);
            drop(Mounted::ext4(&device.path, &at_thin));
            snapshotter.remove(SCRATCH, device);
        });
        let upper = bench.dir("upper");
        let by_overlay = ms(|| {
            drop(Mounted::overlay(&bench.dir("layers"), depth, &upper, &at_overlay));
            std::fs::remove_dir_all(&upper).expect("it is ours");
        });
        // The first brings everybody's pages in.
        if round > 0 {
            ours.push(took.iter().sum());
            took.iter().zip(&mut parts).for_each(|(took, part)| part.push(*took));
            bare.push(by_bare);
            thin.push(by_thin);
            overlay.push(by_overlay);
        }
    }
    bench.ours.detach("keeper");
    bench.ours.remove("keeper");
    tool::settle();
    let [clone, mount, umount, rm] = parts.map(median);
    let [ours, bare, thin, overlay] = [ours, bare, thin, overlay].map(median);
    Row {
        what: "writable clone of an attached chain: made, mounted, unmounted, removed".into(),
        deltas: Some(depth),
        ours: format!("{ours:.1} ms (clone {clone:.1}, mount {mount:.1}, umount {umount:.1}, rm {rm:.1})"),
        beside: format!(
            "dm-thin as containerd uses it {thin:.1} ms; its bare ioctls {bare:.1} ms ({:.2}x), overlayfs {overlay:.1} ms",
            ours / bare
        ),
        goal: Goal::at_most(ours / thin, 1.0, "x dm-thin as containerd uses it"),
    }
}
