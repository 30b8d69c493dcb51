"""Feed damaged and hostile video files to `sample_frames`: `python tests/helpers/fuzz_video.py --minutes 5`.

Every file is made from a real clip in one of several containers and a number, so a failure can be repeated:
`--first NUMBER --files 1`. The files are read in processes of their own. It is a failure if

- anything but a clip or a VideoError comes out, or a clip that contradicts itself;
- a file takes more than 10 seconds, or kills its process;
- the memory of a process grows by more than `MEMORY`;
- a file other than the given one is opened, or a socket. `strace` watches FFmpeg too, where it is installed.
"""

import argparse
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from adatp.video import Limits, VideoError, sample_frames

SECONDS = 10  # that a file may take
MEMORY = 400 << 20  # bytes that a process may grow by: some thirty frames as the decoder has them, of twice the limit
LIMITS = Limits(pixels=4_000_000, seconds=5)
COUNT, EDGE = 8, 64
BAIT = "bait.mp4"  # a file that nothing may open
CONTAINERS = {
    "mp4": ("mp4", "libx264", {}),
    "fragments.mp4": ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("mov", "mpeg4", {}),
    "mkv": ("matroska", "libx264", {}),
    "webm": ("webm", "libvpx-vp9", {}),
    "avi": ("avi", "mpeg4", {}),
    "ts": ("mpegts", "libx264", {}),
    "flv": ("flv", "libx264", {}),
    "gif": ("gif", "gif", {}),
    "mpg": ("mpeg", "mpeg2video", {}),
}
PLAYLISTS = {
    "ffconcat": f"ffconcat version 1.0\nfile {BAIT}\n",
    "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{BAIT}\n#EXT-X-ENDLIST\n",
}
BOXES = b"moov trak mdia minf stbl stts ctts stsc stsz stco co64 elst tkhd stsd mvhd mdhd stss dref hdlr moof traf trun"
NAMES = (
    "a b.mp4", "-i.mp4", "--help", "$(touch pwned).mp4", "; touch pwned;.mp4", "`id`.avi", "a'b\"c.mkv", "50%d.mp4",
    "http:", "concat:x|bait.mp4", "new\nline.ts", "\t.gif", "é漢字🎬.mp4", "x" * 240, "*.mp4", "~", "a\\b.mp4",
    "bad\udcff\udcfe.mp4", "list.ffconcat", "play.m3u8", "%03d.png", "#?&=.mp4",
)  # fmt: skip
NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x40000000, 2**31 - 1, 2**31, 2**32 - 1)


def clips(source):
    """The first 24 frames of a real video, 96 x 64, in each container: its bytes, by name."""
    with av.open(str(source)) as container:
        frames = [f.reformat(96, 64, "rgb24") for f, _ in zip(container.decode(video=0), range(24), strict=False)]
    found = {}
    for name, (muxer, codec, options) in CONTAINERS.items():
        file = BytesIO()
        with av.open(file, "w", format=muxer, options=options) as container:
            stream = container.add_stream(codec, rate=12)
            stream.width, stream.height = 96, 64
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            stream.codec_context.gop_size = 6
            for number, frame in enumerate(frames):
                picture = frame.reformat(format=stream.pix_fmt)
                picture.pts, picture.time_base = number, Fraction(1, 12)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        found[name] = file.getvalue()
    return found | {name: text.encode() for name, text in PLAYLISTS.items()}


# Mutations: each takes the bytes and a random generator


def noise(data, draw):
    for _ in range(draw.choice((1, 3, 10, 100))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return data


def spans(data, draw):
    at, size = draw.randrange(len(data)), draw.choice((4, 16, 188, 1000))
    span = data[at : at + size]
    filler = draw.choice((bytes(len(span)), b"\xff" * len(span), draw.randbytes(len(span)), b"", span + span))
    data[at : at + size] = filler
    return data


def numbers(data, draw):
    """Lengths, counts, offsets, times: a whole number anywhere becomes an extreme one."""
    for _ in range(draw.choice((1, 1, 4))):
        size, order = draw.choice(((2, ">H"), (4, ">I"), (4, "<I"), (2, "<H")))
        at = draw.randrange(max(1, len(data) - size))
        data[at : at + size] = struct.pack(order, draw.choice(NUMBERS) & (1 << 8 * size) - 1)
    return data


def boxes(data, draw):
    """The content of an MP4 box, its size, or its place."""
    name = draw.choice(BOXES.split())
    at = data.find(name)
    if at < 4:
        return numbers(data, draw)
    size = struct.unpack(">I", data[at - 4 : at])[0]
    kind = draw.randrange(4)
    if kind == 0:
        data[at - 4 : at] = struct.pack(">I", draw.choice((*NUMBERS, size + 1, size - 1, size // 2)) & 0xFFFFFFFF)
    elif kind == 1:
        place = at + 4 + 4 * draw.randrange(0, max(1, min(size, 80) // 4))
        data[place : place + 4] = struct.pack(">I", draw.choice(NUMBERS))
    elif kind == 2:
        data[at - 4 : at - 4 + size] = data[at - 4 : at - 4 + size] * draw.choice((0, 2))
    else:
        data[at : at + 4] = draw.choice(BOXES.split())
    return data


def sizes(data, draw):
    """The width and the height, wherever they are written."""
    for value in (96, 64):
        for layout in (">H", "<H", ">I", "<I"):
            old = struct.pack(layout, value)
            new = struct.pack(layout, draw.choice(NUMBERS) & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF))
            at = data.find(old, draw.randrange(len(data)))
            if at >= 0 and draw.random() < 0.5:
                data[at : at + len(old)] = new
    return data


def cut(data, draw):
    return data[: draw.randrange(len(data))]


def references(data, draw):
    """A reference to another file, as QuickTime has them."""
    at = data.find(b"url ")
    if at < 0:
        return spans(data, draw)
    data[at + 4 : at + 8] = bytes(4)  # not in this file
    return data[: at + 8] + BAIT.encode() + b"\0" + data[at + 8 :]


def times(data, draw):
    """The times of the packets, written anew by FFmpeg."""
    out = BytesIO()
    wild = draw.choice((2**20, 2**33, 2**40, 2**62))
    try:
        with (
            av.open(BytesIO(data)) as old,
            av.open(out, "w", format="matroska", options={"fflags": "+bitexact"}) as new,
        ):
            stream = old.streams.video[0]
            copy = new.add_stream_from_template(stream)
            for packet in old.demux(stream):
                if packet.size:
                    packet.stream = copy
                    if draw.random() < 0.3:
                        packet.pts = packet.dts = draw.randrange(-wild, wild)
                    if draw.random() < 0.1:
                        packet.duration = draw.randrange(wild)
                    new.mux(packet)
    except (av.FFmpegError, ValueError, OverflowError):
        pass  # what is written so far is a file, too
    return bytearray(out.getvalue()) or data


MUTATIONS = (noise, spans, numbers, boxes, sizes, cut, references)


def case(number, originals):
    """Name and content of a file."""
    draw = random.Random(number)
    container = draw.choice(list(originals))
    data = bytearray(originals[container])
    if container in CONTAINERS and draw.random() < 0.15:
        data = times(data, draw)
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice(MUTATIONS)(data, draw) or bytearray(b"\0")
    return draw.choice(NAMES) if draw.random() < 0.3 else f"a.{container}", bytes(data)


def check(clip):
    """Raise AssertionError if a clip contradicts itself."""
    count = len(clip.frames)
    assert 1 <= count <= COUNT
    assert clip.frames.dtype == np.uint8
    assert clip.frames.ndim == 4
    assert clip.frames.shape[3] == 3
    assert clip.frames[0].size <= 3 * (4 * EDGE**2 + 4 * EDGE)
    assert clip.times.shape == (count,)
    assert clip.times[0] == 0
    assert (np.diff(clip.times) >= 0).all()
    assert clip.times[-1] <= clip.duration < LIMITS.duration + 1
    assert clip.total >= 1
    assert clip.duration > 0


def work(folder, first, step, files, until):
    """Read files, every `step`th from `first` on. Write the number of each to stdout, and what is wrong with it."""
    originals = {path.name: path.read_bytes() for path in sorted((folder / "originals").iterdir())}
    (folder / f"{first}" / BAIT).write_bytes(originals["mp4"])
    opened, start = [], peak()
    sys.addaudithook(lambda event, args: opened.append((event, args[0])) if event in WATCHED else None)
    for number in range(first, first + files * step, step):
        if time.time() > until:
            break
        print(f"file {number}", flush=True)
        name, data = case(number, originals)
        path = folder / f"{first}" / name
        path.write_bytes(data)
        opened.clear()
        try:
            check(sample_frames(path, COUNT, shortest_edge=EDGE, limits=LIMITS))
            outcome = "clip"
        except VideoError:
            outcome = "refused"
        except BaseException as error:  # whatever it is, it is what we look for
            outcome = f"WRONG {type(error).__name__}: {error}"
        others = [what for what in opened if what[1] != str(path) and not is_descriptor_or_import(what[1])]
        if others:
            outcome = f"WRONG opened {others}"
        grown = peak() - start
        if grown > MEMORY:
            outcome = f"WRONG memory grew by {grown >> 20} MiB"
            start += grown
        path.unlink()
        print(f"{outcome!a:.300} {grown}", flush=True)
    print("end", flush=True)


def is_descriptor_or_import(what):
    return isinstance(what, int) or str(what).startswith(PYTHON)


def peak():
    """The most memory that this process has had, in bytes. `getrusage` would count that of its parent, too."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


PYTHON = (sys.prefix, sys.base_prefix, "/usr", "/lib", "/etc", "/proc")  # what it imports, and what `peak` reads
WATCHED = ("open", "socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")


class Worker:
    """A process that reads files. One that dies or hangs is replaced, and the file is a failure."""

    def __init__(self, folder, first, step, files, until):
        self.folder, self.step, self.until = folder, step, until
        self.trace = folder / f"trace-{first}" if shutil.which("strace") else None
        self.failures, self.outcomes, self.memory, self.slowest = [], {}, 0, 0.0
        self.number, self.left = first - step, files
        (folder / str(first)).mkdir()
        self.begin(first)

    def begin(self, first):
        command = [sys.executable, __file__, "--work", str(self.folder), str(first), str(self.step), str(self.left)]
        (self.folder / str(first)).mkdir(exist_ok=True)
        if self.trace:
            watch = "trace=open,openat,openat2,connect,execve"
            command = ["strace", "-f", "-qq", "-A", "-e", watch, "-s", "4096", "-o", str(self.trace), *command]
        command.append(str(self.until))
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.since, self.rest, self.done = time.monotonic(), "", False

    def look(self):
        """Read what the process has said. Return whether it goes on."""
        self.rest += (self.process.stdout.read() or b"").decode()
        *lines, self.rest = self.rest.split("\n")
        for line in lines:
            now = time.monotonic()
            if line.startswith("file "):
                self.number, self.since = int(line[5:]), now
            elif line == "end":
                self.done = True
            else:
                outcome, grown = line.rsplit(" ", 1)
                self.left -= 1
                self.memory, self.slowest = max(self.memory, int(grown)), max(self.slowest, now - self.since)
                kind = outcome.strip("'\"").split(" ")[0]
                self.outcomes[kind] = self.outcomes.get(kind, 0) + 1
                if kind == "WRONG":
                    self.failures.append((self.number, outcome))
        if self.done:
            self.process.wait()
            return False
        code = self.process.poll()
        hangs = time.monotonic() - self.since > SECONDS + 20 * (self.number < 0)
        if code is None and not hangs:
            return True
        if hangs:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self.failures.append((self.number, f"hangs for over {SECONDS} s" if hangs else f"died with {code}"))
        self.left -= 1
        if self.left <= 0 or len(self.failures) > 20:
            return False
        self.begin(self.number + self.step)
        return True


def opened_elsewhere(trace, folder):
    """Paths that a process has opened since its first file, beside the files and what Python imports."""
    found, started = set(), False
    allowed = (str(folder), str(Path.cwd()), *PYTHON, "/sys", "/dev/urandom")
    for line in trace.read_text(errors="replace").splitlines():
        path = line.split('"')[1] if '"' in line else line
        started = started or path.startswith(str(folder))
        bait = Path(path).name == BAIT and "O_WRONLY" not in line
        if started and ("connect(" in line or not path.startswith(allowed) or bait):
            found.add(line)
    return sorted(found)


def fuzz(source, *, first=0, files=10**9, minutes=1.0, workers=None):
    """Read up to that many files for that many minutes. Return the outcomes, and the failures by number."""
    workers = min(workers or os.cpu_count() or 1, files)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "originals").mkdir()
        for own, data in clips(source).items():
            (folder / "originals" / own).write_bytes(data)
        until = time.time() + 60 * minutes
        shares = [files // workers + (own < files % workers) for own in range(workers)]
        running = [Worker(folder, first + own, workers, shares[own], until) for own in range(workers)]
        going = list(running)
        while going:
            time.sleep(0.05)
            going = [worker for worker in going if worker.look()]
        failures = [failure for worker in running for failure in worker.failures]
        for worker in running:
            if worker.trace:
                failures += [(worker.number, f"opened {line}") for line in opened_elsewhere(worker.trace, folder)[:20]]
        outcomes = {}
        for worker in running:
            for kind, times_ in worker.outcomes.items():
                outcomes[kind] = outcomes.get(kind, 0) + times_
        return {
            "files": sum(outcomes.values()),
            "outcomes": outcomes,
            "failures": failures,
            "slowest": max(worker.slowest for worker in running),
            "memory": max(worker.memory for worker in running),
            "traced": all(worker.trace for worker in running),
        }


def main():
    if sys.argv[1:2] == ["--work"]:
        folder, first, step, files, until = sys.argv[2:]
        work(Path(folder), int(first), int(step), int(files), float(until))
        return
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from bench.sample_video import sample_video

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--files", type=int, default=10**9, help="how many files at most (default: as time allows)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    asked = parser.parse_args()
    found = fuzz(sample_video(), first=asked.first, files=asked.files, minutes=asked.minutes)
    print(
        f"{found['files']} files: {found['outcomes']}; slowest {found['slowest']:.1f} s; memory grew by at most "
        f"{found['memory'] >> 20} MiB; {'watched by strace' if found['traced'] else 'strace is not installed'}"
    )
    for number, failure in found["failures"]:
        print(f"file {number}: {failure}")
    sys.exit(bool(found["failures"]))


if __name__ == "__main__":
    main()
