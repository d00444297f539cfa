# $1: 0 when the package goes, 1 when another version comes.
if [ "$1" -eq 0 ]; then
	systemctl disable overlay-agent.service || :
	if [ -d /run/systemd/system ]; then
		systemctl stop overlay-agent.service || :
	fi
	# Nobody could remove it later: programs and maps outlive the agent.
	overlay-agent cleanup || :
fi
