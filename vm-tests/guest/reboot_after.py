"""Guest: the boot after the power cut. Nothing is attached, the image mounts again, and what was synced is there."""

import guest

(image,) = guest.ctl("list", "--json")["images"]
assert image["name"] == "web" and image["device"] is None and image["dir"] is None, image
guest.ctl("mount", "web", "/mnt/web")
for number in range(40):
    data = open(f"/mnt/web/{number}", "rb").read()
    assert data == bytes([number]) * 50_000, f"file {number}: {len(data)} bytes"
guest.ctl("umount", "web")
guest.ctl("commit", "web")
report = guest.ctl("check", "web", "--json")
assert report["findings"] == [], report
