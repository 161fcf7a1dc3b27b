"""``make compose-test``: the image and the cluster of deploy/compose.yaml, with a real engine, from build to removal.

It uses the engine that answers, by DOCKER_HOST or where `docker` looks, under names of its own; where none does it
starts one, as root, with a data directory, a socket and bridges of its own. Such an engine is asked to pull nothing:
the base image is made by debootstrap and imported under the tag that the Dockerfile names. Whatever happens, kill -9
too, what was made is removed (`keeper`). Where no engine can be had it says so, `verdict=skipped`, and exits 0. With
--self-test it breaks the image in several ways, and exits 0 only if each is caught where it should be.
"""
