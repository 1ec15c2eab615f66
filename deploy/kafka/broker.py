"""Run one Apache Kafka broker on loopback until a signal says stop; the tests use this same script.

Owns the broker's jars (`build/kafka/libs`, by Maven, once), its data folder and its process. Needs `java`
17 or newer, and `mvn` while the jars are not there. Never listens beyond loopback; not for production.
"""

import argparse
import base64
import logging
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from string import Template
from types import FrameType

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "kafka"
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


def resolve_jars(libs: Path) -> str:
    """Return the class path of the broker, after copying its jars to `libs` where they are missing.

    Maven copies beside and the rename comes last: an interrupted download is not taken for a finished one.
    """
    if not libs.is_dir():
        if shutil.which("mvn") is None:
            sys.exit(f"mvn not found, and {libs} does not hold the broker's jars: install Maven")
        print("fetching the broker's jars", file=sys.stderr, flush=True)
        partial = libs.with_name(f"{libs.name}-{uuid.uuid4().hex}")
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={partial}"]
        subprocess.run(["mvn", "-q", "-B", "-f", HERE / "pom.xml", *goal], check=True, stdout=sys.stderr)
        partial.rename(libs)
    return f"{libs}/*"


def free_ports() -> int:
    """Return a port that is free on loopback together with the one after it (the controller's)."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def write_properties(data: Path, port: int) -> Path:
    """Fill in the template for this data folder and port, and return where it lies."""
    template = Template((HERE / "server.properties").read_text())
    properties = data / "server.properties"
    properties.write_text(template.substitute(port=port, controller_port=port + 1, data=data))
    return properties


def format_once(java: list[str], data: Path, properties: Path) -> None:
    """Give an empty data folder a cluster ID; a folder that has one is left alone."""
    if not (data / "logs" / "meta.properties").exists():
        encoded = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        cluster_id = f"A{encoded[1:]}"  # the tool takes a leading dash for an option
        command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", properties]
        subprocess.run(command, check=True, stdout=sys.stderr)


def wait_until_ready(broker: subprocess.Popen[bytes], address: str) -> None:
    """Return once the broker answers requests; leave with its exit code if it ends first."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if broker.poll() is not None:
            sys.exit(f"the broker ended with exit code {broker.returncode} before it was ready")
        try:
            admin = KafkaAdminClient(bootstrap_servers=address, bootstrap_timeout_ms=2000)
        except KafkaError:
            time.sleep(0.1)
            continue
        try:
            if admin.describe_cluster()["brokers"]:
                return
        except KafkaError:
            time.sleep(0.1)
        finally:
            admin.close()
    sys.exit(f"the broker did not answer on {address} within {READY_TIMEOUT_S:.0f} s")


def stop(broker: subprocess.Popen[bytes]) -> None:
    """Ask the broker to stop and wait; kill it if it does not."""
    broker.terminate()
    try:
        broker.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        broker.kill()
        broker.wait()


def main() -> None:
    """Start, print the address, wait for a signal, stop."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--port", type=int, default=9092, help="the next port is used too; 0 = free ones")
    parser.add_argument("--data", type=Path, default=BUILD / "data", help="data folder, kept between runs")
    arguments = parser.parse_args()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    if shutil.which("java") is None:
        sys.exit("java not found: install a Java runtime, 17 or newer")

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    data = arguments.data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    port = arguments.port or free_ports()
    java = ["java", "-Xms128m", "-Xmx512m", "-Dlog4j2.level=WARN", "-cp", resolve_jars(BUILD / "libs")]
    properties = write_properties(data, port)
    format_once(java, data, properties)
    # A session of its own: Ctrl-C reaches this script alone, which then stops the broker in order.
    command = [*java, "kafka.Kafka", properties]
    broker = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        wait_until_ready(broker, f"127.0.0.1:{port}")
        print(f"127.0.0.1:{port}", flush=True)
        sys.exit(broker.wait())
    finally:
        stop(broker)


if __name__ == "__main__":
    main()
