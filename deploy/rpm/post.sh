# $1: 1 at the first installation, 2 at an upgrade.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi
if [ "$1" -eq 1 ]; then
	systemctl enable overlay-agent.service || :
elif [ -d /run/systemd/system ]; then
	systemctl try-restart overlay-agent.service || :
fi
